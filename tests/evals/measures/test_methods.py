"""One method over its settings: by hand, and against integration and plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from budgetctl.evals.harness.answer import Answer
from budgetctl.evals.measures import shape
from budgetctl.evals.measures.summary import summarise_run
from tests.evals.measures.fixture import QUICK, make_answer


def test_a_method_by_hand() -> None:
    rows = [(8, 8, True), (8, 8, False), (16, 12, True), (16, 20, False), (32, 32, True), (32, 28, True)]
    answers = [
        make_answer(budget=budget, item=str(at % 2), thinking_tokens=used, answer_tokens=0, correct=right)
        for at, (budget, used, right) in enumerate(rows)
    ]
    found = summarise_run(answers, how=QUICK)["overall"]["methods"]["hard-cut"]
    assert [(p["budget"], p["tokens"], p["accuracy"]) for p in found["points"]] == [
        (8, 8.0, 0.5),
        (16, 16.0, 0.5),
        (32, 30.0, 1.0),
    ]
    area, own = found["area_budget"], found["area_tokens"]
    assert area is not None
    assert own is not None
    assert (area["start"], area["stop"]) == (8, 32)
    assert area["linear"] == pytest.approx((0.5 * 8 + 0.75 * 16) / 24)
    assert area["log"] == pytest.approx((0.5 + 0.75) / 2)
    assert own["linear"] == pytest.approx((0.5 * 8 + 0.75 * 14) / 22)
    assert found["anytime"] is not None
    assert found["anytime"]["mean"] == pytest.approx(2 / 3)
    assert (found["anytime"]["low"], found["anytime"]["high"]) == (pytest.approx(1 / 3), 1.0)
    assert (found["control"], found["performance"]) == (1.0, 1.0)
    assert found["scaling"] == pytest.approx((0 + 0.5 / 22 + 0.5 / 14) / 3)
    assert found["area_shared"] is found["act"] is found["calibration"] is None
    assert found["requested_used"] == pytest.approx(
        np.corrcoef([8, 8, 16, 16, 32, 32], [8, 8, 12, 20, 32, 28])[0, 1]
    )


def test_act_needs_efforts_and_the_base(run: list[Answer], summary: shape.Summary) -> None:
    def numbers(method: str, effort: str | None) -> tuple[float, float]:
        some = [one for one in run if (one.method, one.budget, one.effort) == (method, None, effort)]
        return (
            float(np.mean([one.correct for one in some])),
            float(np.mean([one.thinking_tokens + one.answer_tokens for one in some])),
        )

    accuracy, cost = numbers("full", None)
    parts = [
        weight * a / accuracy + (1 - weight) * (1 - c / cost)
        for effort, weight in (("low", 0.5), ("medium", 0.5), ("high", 1.0))
        for a, c in [numbers("budgetctl", effort)]
    ]
    methods = summary["overall"]["methods"]
    assert methods["budgetctl"]["act"] == pytest.approx(100 * np.mean(parts))
    assert methods["hard-cut"]["act"] is None
    alone = summarise_run([one for one in run if one.method == "budgetctl"], how=QUICK)
    assert alone["base"] is alone["reference"] is None
    assert alone["overall"]["methods"]["budgetctl"]["act"] is None
    assert alone["overall"]["comparisons"] == []


def test_shared_area_is_over_both_curves(summary: shape.Summary) -> None:
    methods = summary["overall"]["methods"]
    ours, theirs = methods["budgetctl"], methods["hard-cut"]
    shared = ours["area_shared"]
    assert shared is not None
    ends = [[one["points"][at]["tokens"] for one in (ours, theirs)] for at in (0, -1)]
    assert (shared["start"], shared["stop"]) == (max(ends[0]), min(ends[1]))
    grid = np.linspace(shared["start"], shared["stop"], 20_001)
    for name, method in (("linear", ours), ("reference_linear", theirs)):
        x, y = ([point[k] for point in method["points"]] for k in ("tokens", "accuracy"))
        assert shared[name] == pytest.approx(np.interp(grid, x, y).mean(), abs=1e-3)
    assert methods["full"]["area_shared"] is None


def test_calibration_is_of_thoughts_that_ended_by_themselves() -> None:
    answers = [
        make_answer(item="0", predicted_tokens=12.0, predicted_cdf=0.35, thinking_tokens=10),
        make_answer(item="1", predicted_tokens=20.0, predicted_cdf=0.97, thinking_tokens=26),
        make_answer(item="2", predicted_tokens=90.0, close="steered"),
        make_answer(item="3", predicted_tokens=90.0, predicted_cdf=0.1, close="forced"),
    ]
    found = summarise_run(answers, how=QUICK)["overall"]["cells"][0]["calibration"]
    assert found is not None
    assert (found["n"], found["censored"]) == (2, 0.5)
    assert (found["mae"], found["predicted"], found["actual"]) == (4.0, 16.0, 18.0)
    assert found["coverage"] == {"50": 0.5, "80": 0.5, "90": 0.5}
    assert found["pit"] == [0, 0, 0, 0.5, 0, 0, 0, 0, 0, 0.5]
    assert summarise_run(answers[2:], how=QUICK)["overall"]["cells"][0]["calibration"] is None


def test_budgets_with_an_effort_are_points_but_neither_budgets_nor_efforts() -> None:
    plain = [make_answer(budget=b, thinking_tokens=b, correct=b == 16) for b in (8, 16)]
    plain += [make_answer(budget=None, effort=e, correct=True) for e in ("low", "medium", "high")]
    plain += [make_answer(method="full", budget=None, correct=True)]
    both = [make_answer(budget=64, effort=e, thinking_tokens=70, correct=False) for e in ("low", "high")]
    capped = make_answer(method="full", budget=4, thinking_tokens=4, correct=False)
    without, found = (
        summarise_run(some, how=QUICK)["overall"]["methods"]["hard-cut"]
        for some in (plain, [*plain, *both, capped])
    )
    assert len(found["points"]) == len(without["points"]) + 2
    for name in ("area_budget", "anytime", "control", "act"):
        assert found[name] == without[name] is not None
