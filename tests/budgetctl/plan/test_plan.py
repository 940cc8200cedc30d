"""Plans as data: what is read, how steps are ordered, and what is refused with a clear line."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from budgetctl.errors import PlanError
from budgetctl.plan.knob import read_plans
from budgetctl.plan.plan import MAX_STEPS, Plan, Step


def test_a_list_of_texts_is_a_plan() -> None:
    plan = Plan.of(["find the speed", {"text": "find the time", "credit": 3}])
    assert [step.text for step in plan.steps] == ["find the speed", "find the time"]
    assert plan.shares(100) == [25, 75]
    assert plan.source == "given"


def test_what_is_written_is_read_back() -> None:
    plan = Plan.of(
        {
            "steps": [
                {"text": "a", "weight": 2, "heading": ""},
                {"text": "b", "after": [1], "marks": ["B:"], "heading": "B: b"},
            ],
            "schedule": "rex(0.25)",
            "floor": 0.5,
            "firmness": 0.75,
            "planner_tokens": 12,
            "source": "planned",
        }
    )
    assert Plan.of(json.loads(json.dumps(plan.as_dict()))) == plan


def test_steps_come_after_what_they_need() -> None:
    plan = Plan.of(
        [{"text": "sum", "after": [2, 3]}, {"text": "second", "after": [3]}, "first", "aside"],
    )
    assert [step.text for step in plan.steps] == ["first", "second", "sum", "aside"]
    assert [step.after for step in plan.steps] == [(), (1,), (1, 2), ()]
    assert Plan.of(["a", "b", "c"]).steps == (Step("a"), Step("b"), Step("c"))


def test_floors_are_a_part_of_an_even_share() -> None:
    steps = [{"text": "a", "weight": 98}, {"text": "b", "weight": 1}, {"text": "c", "weight": 1}]
    assert Plan.of({"steps": steps, "floor": 0}).shares(300) == [294, 3, 3]
    assert Plan.of({"steps": steps, "floor": 0.5}).shares(300) == [200, 50, 50]
    assert Plan.of({"steps": steps, "floor": 1}).shares(300) == [100, 100, 100]
    assert Plan.of({"steps": steps, "floor": 1}).shares(2) in ([1, 1, 0], [2, 0, 0])
    assert Plan.of(steps).with_schedule("uniform", floor=0).shares(30) == [10, 10, 10]


def test_least_tokens_of_a_step() -> None:
    steps = [
        {"text": "a", "weight": 98},
        {"text": "b", "weight": 1, "least_tokens": 9},
        {"text": "c", "weight": 1},
    ]
    plan = Plan.of({"steps": steps, "floor": 0})
    assert plan.shares(100) == [90, 9, 1]
    assert plan.shares(100, [0, 4, 20]) == [71, 9, 20]
    assert plan.shares(6) == [0, 6, 0]
    assert plan.shares(6, [0, 9, 18]) == [0, 2, 4]
    assert Plan.of(json.loads(json.dumps(plan.as_dict()))) == plan


def test_the_fallback_is_one_step_that_writes_nothing() -> None:
    plan = Plan.single("how far?", planner_tokens=7)
    assert (plan.source, plan.planner_tokens, plan.shares(50)) == ("fallback", 7, [50])
    assert plan.steps[0].heading == ""


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ([], "0 steps: expected 1 to 32"),
        (["step"] * 200, "200 steps"),
        (["step"] * (MAX_STEPS + 1), "join steps"),
        ([{"text": "a", "weight": -1}], "weight -1"),
        ([{"text": "a", "weight": math.nan}], "weight nan"),
        ([{"text": "a", "weight": math.inf}], "weight inf"),
        ([{"text": "a", "weight": "2"}], "weight '2'"),
        ([{"text": "a", "weight": True}], "weight True"),
        ([{"text": "a", "weight": 0}], "every weight is 0"),
        ([{"text": " "}], "expected some text"),
        ([{"text": 3}], "expected some text"),
        ([{"weight": 1}], "no text"),
        ([{"text": "a", "wait": 1}], "unknown field 'wait'"),
        ([7], "a step of type int"),
        ([{"text": "a", "after": [1]}], "comes after step 1"),
        ([{"text": "a", "after": [2]}, {"text": "b", "after": [1]}], "steps 1, 2 wait for each other"),
        (["c", {"text": "a", "after": [3]}, {"text": "b", "after": [2]}], "steps 2, 3 wait"),
        ([{"text": "a", "after": [9]}], "expected numbers of other steps"),
        ([{"text": "a", "after": ["1"]}], "expected numbers of steps"),
        ([{"text": "a", "after": "1"}], "expected a list"),
        ([{"text": "a", "marks": [""]}], "expected texts"),
        ([{"text": "a", "heading": 3}], "expected texts"),
        ([{"text": "a", "least_tokens": -1}], "least_tokens=-1"),
        (["a", {"text": "b", "heading": ""}], "a step without heading"),
        ({"steps": "do it"}, "steps of type str"),
        ({"schedule": "uniform"}, "steps of type NoneType"),
        ({"steps": ["a"], "budget": 3}, "unknown field 'budget'"),
        ({"steps": ["a"], "schedule": "best"}, "unknown schedule 'best'"),
        ({"steps": ["a"], "floor": 2}, "from 0 to 1"),
        ({"steps": ["a"], "floor": math.nan}, "from 0 to 1"),
        ({"steps": ["a"], "firmness": -1}, "firmness -1"),
        ({"steps": ["a"], "source": "dreamt"}, "expected one of given"),
        ({"steps": ["a"], "planner_tokens": -1}, "planner_tokens=-1"),
    ],
)
def test_bad_plans_are_told_in_one_line(value: Any, match: str) -> None:
    with pytest.raises(PlanError, match=match) as caught:
        Plan.of(value)
    assert "\n" not in str(caught.value)


def test_what_the_knob_takes() -> None:
    plan = Plan.of(["a", "b"])
    assert read_plans(None) is None
    assert read_plans(plan) == read_plans(["a", "b"]) == read_plans({"steps": ["a", "b"]}) == [plan]
    assert read_plans([plan, None, ["a", "b"], {"steps": ["a", "b"]}]) == [plan, None, plan, plan]
    assert read_plans([None, None]) == [None, None]


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("do it", "plan of type str"),
        (3, "plan of type int"),
        ([], "0 steps"),
        ([Plan.of(["a"]), "b"], "steps of type str"),
        ([Plan.of(["a"]), 4], "steps of type int"),
    ],
)
def test_what_the_knob_refuses(value: Any, match: str) -> None:
    with pytest.raises(PlanError, match=match):
        read_plans(value)


def test_what_is_kept_for_the_steps_to_come() -> None:
    steps = [
        {"text": "a", "weight": 5},
        {"text": "b", "weight": 3},
        {"text": "c", "weight": 2, "least_tokens": 15},
    ]
    plan = Plan.of({"steps": steps, "floor": 0, "firmness": 1})
    assert (plan.shares(100), plan.limits(100)) == ([50, 30, 20], [50, 80, 100])
    half = plan.with_schedule("weighted", firmness=0.5)
    assert (half.shares(100), half.limits(100)) == ([50, 30, 20], [70, 85, 100])
    none = plan.with_schedule("weighted", firmness=0)
    assert none.limits(100) == [85, 85, 100]
    assert none.limits(100, [0, 7, 0]) == [78, 85, 100]
