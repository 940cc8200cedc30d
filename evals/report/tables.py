"""The tables of a report, as texts with the values that they are sorted by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from budgetctl.evals.measures.shape import Cell, Comparison
from budgetctl.evals.report.run import Run
from budgetctl.evals.report.series import setting_name
from budgetctl.evals.report.words import points, signed, verdict

NOTHING = "\N{EN DASH}"


@dataclass(frozen=True)
class Value:
    """A table's entry: what it shows, and what it is sorted by."""

    text: str
    sort: float | str | None = None

    @property
    def number(self) -> bool:
        """Whether it stands to the right."""
        return not isinstance(self.sort, str)


@dataclass(frozen=True)
class Table:
    """Column names with their explanations, and rows with what the page's filters ask of them."""

    columns: Sequence[tuple[str, str]]
    rows: Sequence[tuple[dict[str, str], Sequence[Value]]]


def main_table(runs: Sequence[Run]) -> Table:
    """One row a run, task, method and setting."""
    columns = [
        ("task", ""),
        ("method", ""),
        ("setting", "budget in tokens, or effort, that the method was given"),
    ]
    columns += [(name, meaning) for name, meaning, _ in _MAIN]
    rows = []
    for run in runs:
        for task, section in run.sections.items():
            for cell in section["cells"]:
                place = _place(runs, run, task, cell["method"], cell["budget"], cell["effort"])
                rows.append((_tags(run, task, cell), [*place, *(show(cell) for _, _, show in _MAIN)]))
    return Table(_with_run(runs, columns), rows)


def method_table(runs: Sequence[Run]) -> Table:
    """One row a run, task and method: measures over its settings."""
    columns = [("task", ""), ("method", ""), *((name, meaning) for name, meaning, _ in _METHOD)]
    rows = []
    for run in runs:
        for task, section in run.sections.items():
            for name, method in section["methods"].items():
                tags = {"run": run.label, "task": task, "method": name}
                place = _place(runs, run, task, name)
                rows.append((tags, [*place, *(show(method) for _, _, show in _METHOD)]))
    return Table(_with_run(runs, columns), rows)


def calibration_table(runs: Sequence[Run]) -> Table:
    """One row a run, task and method with a predictor."""
    columns = [
        ("task", ""),
        ("method", ""),
        ("thoughts", "that ended by the model's own will and had a predicted probability"),
        (
            "left out, %",
            "share of predicted thoughts that ended otherwise; the rest is fair only where it is near 0",
        ),
        ("in 50 %", "percent of thoughts inside the central 50 % interval"),
        ("in 80 %", "percent inside the central 80 % interval"),
        ("in 90 %", "percent inside the central 90 % interval"),
        ("error, tokens", "mean of |predicted - actual|"),
        ("predicted", "mean tokens"),
        ("actual", "mean tokens"),
    ]
    rows = []
    for run in runs:
        for task, section in run.sections.items():
            for name, method in section["methods"].items():
                told = method["calibration"]
                if told is None or not told["n"]:
                    continue
                values = [Value(str(told["n"]), told["n"]), _percent(told["censored"])]
                values += [_percent(told["coverage"].get(share)) for share in ("50", "80", "90")]
                values += [_plain(told["mae"]), _plain(told["predicted"]), _plain(told["actual"])]
                tags = {"run": run.label, "task": task, "method": name}
                rows.append((tags, [*_place(runs, run, task, name), *values]))
    return Table(_with_run(runs, columns), rows)


def comparison_table(runs: Sequence[Run]) -> Table:
    """One row a run, task, method and setting other than the reference's."""
    columns = [
        ("task", ""),
        ("method", ""),
        ("setting", ""),
        (
            "at equal tokens, points",
            "difference in accuracy to the reference's curve at as many generated tokens",
        ),
        ("in words", "at equal tokens"),
        (
            "at the same setting, points",
            "difference in accuracy to the reference at the same budget and effort",
        ),
        ("more tokens", "difference in mean generated tokens to the reference at the same budget and effort"),
        ("in words", "at the same setting"),
        ("pairs", "answers to the same question with the same seed, at the same setting"),
    ]
    rows = []
    for run in runs:
        for task, section in run.sections.items():
            for row in section["comparisons"]:
                values = [*_matched(row), *_same_setting(row), Value(str(row["pairs"]), row["pairs"])]
                tags = _tags(run, task, row)
                place = _place(runs, run, task, row["method"], row["budget"], row["effort"])
                rows.append((tags, [*place, *values]))
    return Table(_with_run(runs, columns), rows)


def _matched(row: Comparison) -> list[Value]:
    matched = row["matched"]
    if matched is None:
        return [Value(NOTHING), Value("nothing to compare", "")]
    said = verdict(matched["gain"], row["method"], row["reference"])
    if not matched["inside"]:
        said += f"; but {row['reference']} was measured at other lengths only"
    return [Value(points(matched["gain"]), matched["gain"]["mean"]), Value(said, said)]


def _same_setting(row: Comparison) -> list[Value]:
    gain, change = row["gain"], row["token_gain"]
    if gain is None or change is None:
        return [Value(NOTHING), Value(NOTHING), Value(f"{row['reference']} has no such setting", "")]
    said = verdict(gain, row["method"], row["reference"])
    return [
        Value(points(gain), gain["mean"]),
        Value(signed(change["mean"]), change["mean"]),
        Value(said, said),
    ]


def _with_run(runs: Sequence[Run], columns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [("run", ""), *columns] if len(runs) > 1 else list(columns)


def _tags(run: Run, task: str, cell: Any) -> dict[str, str]:
    setting = setting_name(cell["budget"], cell["effort"])
    return {"run": run.label, "task": task, "method": cell["method"], "setting": setting}


def _place(runs: Sequence[Run], run: Run, task: str, method: str, *setting: Any) -> list[Value]:
    """The first entries of a row; settings are sorted by budget, efforts and others after them."""
    values = [Value(task, task), Value(method, method)]
    if setting:
        budget, effort = setting
        values.append(
            Value(setting_name(budget, effort), f"{budget:012d}" if budget is not None else f"~{effort}")
        )
    return [Value(run.label, run.label), *values] if len(runs) > 1 else values


def _percent(share: float | None, digits: int = 1) -> Value:
    return Value(NOTHING) if share is None else Value(f"{100 * share:.{digits}f}", share)


def _plain(value: float | None, digits: int = 1) -> Value:
    return Value(NOTHING) if value is None else Value(f"{value:.{digits}f}", value)


def _mean(name: str, digits: int = 1) -> Callable[[Any], Value]:
    return lambda cell: _plain(cell[name]["mean"], digits)


def _accuracy(cell: Cell) -> Value:
    mean, low, high = (100 * cell["accuracy"][key] for key in ("mean", "low", "high"))
    return Value(f"{mean:.1f} [{low:.1f}, {high:.1f}]", cell["accuracy"]["mean"])


def _tokens(cell: Cell) -> Value:
    mean, low, high = (cell["tokens"][key] for key in ("mean", "low", "high"))
    return Value(f"{mean:.1f} [{low:.1f}, {high:.1f}]", mean)


def _bytes(count: int | None) -> Value:
    return Value(NOTHING) if count is None else Value(f"{count / 2**20:.2f}", count)


def _area(name: str) -> Callable[[Any], Value]:
    return lambda method: _percent(None if method[name] is None else method[name]["linear"])


_MAIN: tuple[tuple[str, str, Callable[[Any], Value]], ...] = (
    ("answers", "questions times seeds", lambda cell: Value(str(cell["n"]), cell["n"])),
    ("accuracy, %", "with its bootstrap interval over questions", _accuracy),
    ("thinking", "tokens of the thought, mean a question", _mean("thinking_tokens")),
    ("overhead", "tokens of probes, planners and estimates, mean a question", _mean("overhead_tokens")),
    ("answer", "tokens after the thought, mean a question", _mean("answer_tokens")),
    ("all tokens", "thinking, overhead and answer, with the interval", _tokens),
    ("over limit, %", "thoughts longer than the limit in force", lambda cell: _percent(cell["violation"])),
    ("overshoot, %", "mean excess over the limit, of the limit", lambda cell: _percent(cell["overshoot"])),
    ("length error, %", "mean |thinking - limit|, of the limit", lambda cell: _percent(cell["length_error"])),
    ("natural, %", "thoughts that the model itself ended", lambda cell: _percent(cell["close"]["natural"])),
    ("forced, %", "thoughts that were cut", lambda cell: _percent(cell["close"]["forced"])),
    ("leaked, %", "answers that hold markers of a thought", lambda cell: _percent(cell["leak"])),
    ("E³", "(100 accuracy)² / mean thinking and answer tokens", lambda cell: _plain(cell["e3"])),
    ("re-read", "prompt tokens of calls after the first, mean a question", _mean("read_tokens")),
    ("s", "seconds a question: the batch's time divided by its questions", _mean("seconds", 3)),
    ("tokens/s", "generated tokens a second", lambda cell: _plain(cell["tokens_per_second"])),
    ("KV, MiB", "largest share of a question in its batch's key-value cache", lambda cell: _bytes(cell["kv_bytes_peak"])),
)  # fmt: skip


_METHOD: tuple[tuple[str, str, Callable[[Any], Value]], ...] = (
    ("best, %", "s1's performance: best accuracy of a setting", lambda m: _percent(m["performance"])),
    ("control, %", "s1's control: budgets that the mean thought kept to", lambda m: _percent(m["control"])),
    ("scaling", "s1's scaling: mean slope between two settings, points of accuracy a thinking token",
     lambda m: Value(NOTHING) if m["scaling"] is None else Value(signed(100 * m["scaling"], 2), m["scaling"])),
    ("over budgets, %", "mean accuracy under the accuracy-budget curve, linear axis", _area("area_budget")),
    ("over tokens, %", "mean accuracy under the accuracy-tokens curve, over its own range", _area("area_tokens")),
    ("anytime, %", "accuracy at a budget drawn uniformly from those asked for",
     lambda m: Value(NOTHING) if m["anytime"] is None else _percent(m["anytime"]["mean"])),
    ("correlation", "Pearson's, of the limit and the thinking tokens", lambda m: _plain(m["requested_used"], 3)),
    ("ACT, %", "ThinkDial's score of the efforts low, medium and high", lambda m: _plain(m["act"])),
)  # fmt: skip
