"""The search of settings: goes on after a kill as if there had been none, can choose less, tells what it found."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetctl.errors import BudgetctlError, BudgetError, InputFileError
from budgetctl.evals.tune_questions import FileQuestion, take
from budgetctl.evals.tune_space import AUTO_PLAN, NO_PLAN, SCHEDULES, Setting, Space
from budgetctl.evals.tuning import HeldOut, Objective, Outcome, Trial, best_of, open_run, pareto, run_search

pytest.importorskip("optuna", reason="needs optuna: pip install 'budgetctl-llm[tune]'")

SPACE = Space(256, predictor=True)


def score(setting: Setting) -> list[Outcome]:
    """Best with 100 tokens and no plan; more is worse."""
    right = 80 - abs(setting.max_new_tokens - 100) // 3 - 10 * (setting.schedule is not None)
    return [Outcome(i < right, setting.max_new_tokens) for i in range(100)]


class Drawn:
    """Suggests at random, as a trial does."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def suggest_int(self, name: str, low: int, high: int, **options: Any) -> int:
        return self.rng.randint(low, high)

    def suggest_float(self, name: str, low: float, high: float, step: float) -> float:
        return low + step * self.rng.randint(0, round((high - low) / step))

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        return self.rng.choice(choices)


def test_a_killed_search_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    objective = Objective(price=0.001)
    whole = run_search(tmp_path / "a", [], SPACE, objective, 16, 3, score)
    assert len(whole) == 16
    assert whole[0].params is None

    calls = 0

    def killed(setting: Setting) -> list[Outcome]:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise KeyboardInterrupt
        return score(setting)

    about = {"seed": 3}
    with pytest.raises(KeyboardInterrupt):
        run_search(tmp_path / "b", open_run(tmp_path / "b", about), SPACE, objective, 16, 3, killed)
    known = open_run(tmp_path / "b", about)
    assert len(known) == 11
    assert run_search(tmp_path / "b", known, SPACE, objective, 16, 3, score) == whole
    assert open_run(tmp_path / "b", about) == whole
    assert (
        run_search(tmp_path / "b", whole, SPACE, objective, 16, 3, killed) == whole
    )  # nothing is left to ask
    assert run_search(tmp_path / "c", [], SPACE, objective, 16, 4, score)[1:] != whole[1:]


def test_less_is_found_where_less_is_better(tmp_path: Path) -> None:
    done = run_search(tmp_path, [], SPACE, Objective(price=0.0), 40, 0, score)
    best = best_of(done, Objective(price=0.0))
    assert best.params is not None
    chosen = SPACE.setting(best.params)
    assert 70 < chosen.max_new_tokens < 130
    assert chosen.schedule is None


@given(st.integers(0, 10_000), st.booleans(), st.booleans(), st.integers(32, 4000))
def test_every_setting_fits_and_stands_for_its_flags(
    seed: int, predictor: bool, plans: bool, most: int
) -> None:
    space = Space(most, predictor, plans)
    params = space.suggest(Drawn(seed))
    setting = space.setting(params)
    assert setting.max_new_tokens <= most
    assert setting.answer_reserve is not None
    assert 0 <= setting.answer_reserve < setting.max_new_tokens
    assert (setting.effort is None) != (setting.thinking_budget is None)
    assert (setting.guidance_strength is None) == (not predictor)
    flags = setting.flags()
    assert flags[flags.index("--max-new-tokens") + 1] == str(setting.max_new_tokens)
    assert ("--plan" in flags) == (setting.schedule is not None) == (params.get("plan", NO_PLAN) != NO_PLAN)
    assert set(space.distributions(params)) == set(params)


def test_the_space_holds_less() -> None:
    ranges = Space(256, True).distributions(
        {
            **Space(256, True).suggest(Drawn(0)),
            "plan": AUTO_PLAN,
            "schedule": "rex",
            "floor": 0,
            "firmness": 0,
            "limit": "effort",
            "effort": 1,
        }
    )
    assert (ranges["tokens"].low, ranges["tokens"].high) == (32, 256)
    assert ranges["strength"].low == 0
    assert ranges["plan"].choices == (NO_PLAN, AUTO_PLAN)
    assert ranges["schedule"].choices == SCHEDULES
    assert Space(256, True).default == Setting(256)
    assert Setting(256).flags() == ["--max-new-tokens", "256"]
    with pytest.raises(BudgetError, match="leaves nothing to search"):
        Space(31, True)


def test_objectives() -> None:
    assert Objective(price=0.01).value(0.8, 20) == pytest.approx(0.6)
    capped = Objective(at_most=40)
    assert capped.value(0.3, 40) == 0.3
    assert capped.value(0.9, 44) == pytest.approx(-0.1)
    assert capped.value(0.9, 80) < capped.value(0.1, 60) < capped.value(0.0, 1)
    for wrong in ({}, {"price": 1, "at_most": 2}, {"price": -1}, {"at_most": 0}, {"price": float("nan")}):
        with pytest.raises(BudgetError, match="expected one of the two"):
            Objective(**wrong)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    trials = [Trial(None, float(a), float(t)) for a, t in points]
    front = pareto(trials)
    beaten = [
        t for t in trials if any(o.accuracy >= t.accuracy and o.tokens <= t.tokens and o != t for o in trials)
    ]
    assert {(t.accuracy, t.tokens) for t in front} == {
        (t.accuracy, t.tokens) for t in trials if t not in beaten
    }
    assert [t.tokens for t in front] == sorted(t.tokens for t in front)
    best = best_of(trials, Objective(price=0.5))
    assert (best.accuracy, best.tokens) in {(t.accuracy, t.tokens) for t in front}


def test_held_out_is_paired_with_the_default() -> None:
    default = [Outcome(i % 2 == 0, 50) for i in range(40)]
    same = HeldOut.of(default, default, Objective(price=0.01))
    assert (same.gain.mean, same.gain.low, same.gain.high, same.more_tokens) == (0, 0, 0, 0)
    better = HeldOut.of([Outcome(True, 30)] * 40, default, Objective(price=0.01))
    assert (better.gain.mean, better.more_tokens, better.value) == (0.5, -20, pytest.approx(0.7))
    assert better.gain.low < 0.5 < better.gain.high


def test_a_folder_of_another_search_is_refused(tmp_path: Path) -> None:
    assert open_run(tmp_path / "a", {"seed": 1}) == []
    with pytest.raises(BudgetctlError, match="another seed"):
        open_run(tmp_path / "a", {"seed": 2})
    (tmp_path / "a" / "trials.jsonl").write_text("{")
    with pytest.raises(BudgetctlError, match="cannot keep the search"):
        open_run(tmp_path / "a", {"seed": 1})
    (tmp_path / "file").write_text("")
    with pytest.raises(BudgetctlError, match="cannot keep the search"):
        open_run(tmp_path / "file", {"seed": 1})


def test_own_questions_are_apart_and_of_one_family() -> None:
    dev, other = take(None, None, "pair", 12, embedded=True)
    assert len(dev) == len(other) == 12
    assert not {q.prompt for q in dev} & {q.prompt for q in other}
    assert all("Dial 2" in q.prompt for q in (*dev, *other))


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        ("42", "It is 1,042 or 42.", True),
        ("1042", "so 1,042.0", True),
        ("42", "42 of 43", False),
        ("Paris", "x\nThe capital is paris.", True),
        ("Paris", "Paris\nno: Rome", False),
        ("art", "a party", False),
        ("42", "", False),
    ],
)
def test_answers_of_a_file(answer: str, text: str, right: bool) -> None:
    assert FileQuestion("?", answer).is_correct(text) == right


def test_files_of_questions(tmp_path: Path) -> None:
    def file(name: str, *lines: object) -> Path:
        path = tmp_path / name
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
        return path

    dev = file("dev", {"prompt": "a", "answer": 4}, "", {"prompt": "b", "answer": " x "})
    other = file("other", {"prompt": "c", "answer": "1"}, {"prompt": "d", "answer": "2"})
    assert take(dev, other, None, 9, embedded=False)[0] == [FileQuestion("a", "4"), FileQuestion("b", "x")]
    cases: list[tuple[tuple[Any, Any, Any], str]] = [
        ((dev, None, None), "go together"),
        ((None, None, None), "--model without --questions"),
        ((dev, dev, None), "2 questions are in both"),
        ((dev, other, "pair"), "--family with --questions"),
        ((tmp_path / "none", other, None), "cannot be read"),
        (
            (file("bad", {"prompt": "a", "answer": "1"}, {"prompt": "a"}), other, None),
            "bad, line 2 is no question",
        ),
        ((file("one", {"prompt": "a", "answer": "1"}), other, None), "has 1 questions"),
        ((file("json", "{"), other, None), "line 1"),
    ]
    for arguments, match in cases:
        with pytest.raises((BudgetctlError, InputFileError), match=match):
            take(*arguments, 9, embedded=False)
    with pytest.raises(BudgetctlError, match="expected one of dial"):
        take(None, None, "dice", 9, embedded=True)
