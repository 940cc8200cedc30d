"""What was run, as the page tells it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from budgetctl.evals.report.run import Run
from budgetctl.evals.report.series import setting_name


def facts(run: Run) -> dict[str, str]:
    """What the records say of a run, then every entry of ``run.json``, nested names joined by dots.

    Of lists of mappings, such as sessions, only the length is told; no entry stands for nothing.
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
        "methods": "; ".join(f"{method}: {_settings(told)}" for method, told in sorted(settings.items())),
        "seeds": ", ".join("greedy" if seed == -1 else str(seed) for seed in seeds),
        "answers": str(len(run.records)),
        "reference method": summary["reference"] or "none",
        "intervals": f"{100 * summary['confidence']:g} %, {summary['resamples']} bootstrap resamples of questions",
    }
    return found | {name: text for name, text in _flat(run.about) if name not in found}


def _settings(told: list[str]) -> str:
    """Settings of one kind named once: budgets 8, 16, 32."""
    words = [setting.split(" ", 1) for setting in told]
    budgets = [value for kind, value in words if kind == "budget"]
    efforts = [value for kind, value in words if kind == "effort"]
    parts = [f"budgets {', '.join(budgets)}"] if budgets else []
    parts += [f"efforts {', '.join(efforts)}"] if efforts else []
    return ", ".join(parts) or "as it is"


def _flat(value: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, str]]:
    for key, entry in value.items():
        path = f"{name}.{key}" if name else str(key)
        if isinstance(entry, Mapping):
            yield from _flat(entry, path)
        elif isinstance(entry, list):
            several = any(isinstance(one, Mapping) for one in entry)
            yield path, str(len(entry)) if several else ", ".join(map(str, entry))
        elif entry is not None:
            yield path, str(entry)
