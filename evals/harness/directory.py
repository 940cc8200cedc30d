"""A run directory: ``run.json`` says what is asked and with what, ``records.jsonl`` has the answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from budgetctl.errors import EvalError
from budgetctl.evals.harness.config import RunConfig
from budgetctl.evals.harness.lock import locked
from budgetctl.evals.harness.records import RECORDS, mend, merge_shards
from budgetctl.evals.output import write_text

RUN = "run.json"
#: What runs had that say nothing of it.
OLDER = {"engine": "transformers"}


def check_directory(folder: Path, config: RunConfig) -> dict[str, Any] | None:
    """What ``run.json`` of an earlier session says; None for a new run. Nothing is written.

    Raises:
        EvalError: the directory has a run of another configuration, or records that nothing says anything of.
    """
    path = folder / RUN
    if not path.exists():
        if (folder / RECORDS).exists() or any(folder.glob("records-*.jsonl")):
            raise EvalError(
                f"{folder} has records and no {RUN}: expected the run that they are of; move them away, or give another --out"
            )
        if folder.exists() and not folder.is_dir():
            raise EvalError(f"{folder} is a file: expected a folder; give another --out")
        return None
    try:
        earlier = dict(json.loads(path.read_text(encoding="utf-8")))
        was = OLDER | dict(earlier["configuration"])
    except (OSError, ValueError, KeyError, TypeError):
        raise EvalError(
            f"{path} cannot be read: expected the configuration of a run; give another --out"
        ) from None
    now = config.as_dict()
    for name in dict.fromkeys((*now, *was)):
        if was.get(name) != now.get(name):
            raise EvalError(
                f"{folder} is a run with {name}={_shown(was.get(name))} and {_shown(now.get(name))} is asked for: expected "
                "the same to go on with it; ask the same, or give another --out"
            )
    return earlier


@contextmanager
def open_directory(folder: Path, config: RunConfig, session: Mapping[str, Any]) -> Iterator[None]:
    """Hold the directory for one session, with what earlier ones left in ``records.jsonl``, whole.

    Args:
        folder: made where it is not there.
        config: of the run.
        session: what it is made with; that of the first stands at the top of ``run.json``.

    Raises:
        EvalError: as of :func:`check_directory`, or another process holds it.
    """
    check_directory(folder, config)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        earlier = check_directory(folder, config)
        for path in (folder / RECORDS, *folder.glob("records-*.jsonl")):
            mend(path)
        merge_shards(folder)
        if earlier is None:
            earlier = {
                "configuration": config.as_dict(),
                "seeds": list(config.seeds),
                **session,
                "sessions": [],
            }
        earlier["sessions"] = [*earlier.get("sessions", []), dict(session)]
        write_text(folder / RUN, json.dumps(earlier, indent=1) + "\n")
        yield


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
