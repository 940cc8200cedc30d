"""A JSON-lines file that is built in parts: it is there whole or not at all, and an interrupted build goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from budgetctl.errors import InputFileError

Row = dict[str, Any]


def build_row_file(
    path: Path, settings: dict[str, Any], parts: Sequence[Any], make: Callable[[Any], list[Row]]
) -> int:
    """Write the rows that ``make`` gives for each part, in order, into ``path``.

    While it is built the rows stand in ``<path>.partial``, which begins with the settings and has a line after each
    part; a part that was not finished is made again. The settings stay beside the file, in ``<path>.settings.json``: a
    file that was finished with the same settings is left as it is.

    Args:
        path: of the file.
        settings: JSON values that the rows follow from.
        parts: what ``make`` is called with; their number belongs to the settings.
        make: rows of a part, a function of the part alone.

    Returns:
        number of rows in the file.

    Raises:
        InputFileError: the file or its beginning was made with other settings, or is not ours.
    """
    told = path.with_name(path.name + ".settings.json")
    partial = path.with_name(path.name + ".partial")
    settings = json.loads(json.dumps(settings | {"parts": len(parts)}))
    if path.exists():
        _same(path, _read(told), settings)
        return path.read_bytes().count(b"\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    done, lines = _resume(partial, settings)
    _write(partial, [json.dumps({"settings": settings}), *lines])
    with partial.open("a", encoding="utf-8") as file:
        for number in range(done, len(parts)):
            rows = [json.dumps({"row": row}, ensure_ascii=False) for row in make(parts[number])]
            added = [*rows, json.dumps({"done": number})]
            file.write("".join(line + "\n" for line in added))
            file.flush()
            lines += added
    rows = [
        json.dumps(entry["row"], ensure_ascii=False) for entry in map(json.loads, lines) if "row" in entry
    ]
    _write(told, [json.dumps(settings, indent=1)])
    _write(path, rows)
    partial.unlink()
    return len(rows)


def _resume(partial: Path, settings: dict[str, Any]) -> tuple[int, list[str]]:
    """Parts that are finished, and their lines."""
    if not partial.exists():
        return 0, []
    head, *lines = partial.read_text(encoding="utf-8").split("\n")[:-1] or [""]
    try:
        earlier = json.loads(head)["settings"]
    except (ValueError, KeyError, TypeError):
        raise InputFileError(
            f"{partial} does not begin with settings: expected a file that this command left; remove it"
        ) from None
    _same(partial, earlier, settings)
    ends = [at for at, line in enumerate(lines) if "done" in json.loads(line)]
    return len(ends), lines[: ends[-1] + 1] if ends else []


def _same(path: Path, earlier: dict[str, Any], settings: dict[str, Any]) -> None:
    for name in sorted({*earlier, *settings}):
        if earlier.get(name) != settings.get(name):
            raise InputFileError(
                f"{path} was made with {name}={earlier.get(name)!r}: expected {settings.get(name)!r} as now asked for; "
                "use the same settings to go on, or another file"
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        raise InputFileError(
            f"{path} cannot be read: expected the settings of the file beside it; write into another file"
        ) from None


def _write(path: Path, lines: Sequence[str]) -> None:
    """Whole or not at all."""
    writing = path.with_name(path.name + ".writing")
    writing.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    os.replace(writing, path)
