"""What was run, as the page tells it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from budgetctl.evals.report.run import Run
from budgetctl.evals.report.series import setting_name

#: Of ``run.json``, what stands first on the page.
FIRST = ("model", "command", "git revision", "versions", "device")


def facts(run: Run) -> dict[str, str]:
    """What the records say of a run, then the entries of ``run.json``, those of ``FIRST`` before the others.

    Of lists of mappings, such as sessions, only the length is told.
    """
    questions: dict[str, set[str]] = {}
    settings: dict[str, list[str]] = {}
    for record in run.records:
        questions.setdefault(record.task, set()).add(record.item)
        told = settings.setdefault(record.method, [])
        setting = setting_name(record.budget, record.effort)
        if setting not in told:
            told.append(setting)
    seeds = sorted({record.seed for record in run.records})
    summary = run.summary
    found = {
        "tasks": "; ".join(f"{task} ({len(items)} questions)" for task, items in sorted(questions.items())),
        "methods": "; ".join(
            f"{method}: {_settings(told)}".removesuffix(": ") for method, told in sorted(settings.items())
        ),
        "seeds": ", ".join("greedy" if seed == -1 else str(seed) for seed in seeds),
        "answers": str(len(run.records)),
        "reference method": summary["reference"] or "none",
        "intervals": f"{100 * summary['confidence']:g} %, {summary['resamples']} bootstrap resamples of questions",
    }
    entries = {name.replace("_", " "): text for name, text in _named(run.about)}
    first = {name: entries[name] for name in FIRST if name in entries}
    return first | found | {name: text for name, text in entries.items() if name not in found}


def _settings(told: list[str]) -> str:
    """Settings of one kind named once: budgets 8, 16, 32."""
    words = [setting.split(" ", 1) for setting in told]
    budgets = [value for kind, value in words if kind == "budget"]
    efforts = [value for kind, value in words if kind == "effort"]
    parts = [f"budgets {', '.join(budgets)}"] if budgets else []
    parts += [f"efforts {', '.join(efforts)}"] if efforts else []
    return ", ".join(parts)


def _named(about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Entries as texts; those of ``configuration`` stand by themselves."""
    for name, entry in about.items():
        if name == "configuration" and isinstance(entry, Mapping):
            yield from _named(entry)
        elif isinstance(entry, list) and any(isinstance(one, Mapping) for one in entry):
            yield name, str(len(entry))
        elif text := _text(entry):
            yield name, text


def _text(entry: Any) -> str:
    if isinstance(entry, Mapping):
        return ", ".join(f"{name} {_text(value)}" for name, value in entry.items() if value is not None)
    if isinstance(entry, list):
        return ", ".join(map(str, entry))
    return "" if entry is None else str(entry)
