"""``budgetctl generate --plan``: the same as in ``generate``, steps told, and mistakes told in one line before any model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from budgetctl.plan.allocators import ALLOCATORS
from budgetctl.plan.plan import Plan

Run = Callable[..., Any]
PAIR = "Dial 1 shows 6: turn -2 -5 -1. Dial 2 shows 1: turn +5 -3 -1 -1. Sum of the two digits?"
ONE = "Start at 11 and go u d. Where does it end?"
BUDGET = ("--thinking-budget", "50", "--seed", "3", "--json")


def answers(outcome: Any) -> list[dict[str, Any]]:
    assert outcome.exit_code == 0, outcome.stderr
    results: list[dict[str, Any]] = json.loads(outcome.stdout)["results"]
    return results


def test_a_plan_by_rule_for_the_embedded_reasoner(run: Run) -> None:
    told = answers(run("generate", PAIR, "--plan", "auto", *BUDGET, embedded=True))[0]["plan"]
    assert (told["source"], told["schedule"], told["planner_tokens"]) == ("planned", "weighted", 0)
    assert [step["text"] for step in told["steps"]][2] == "Sum of the two digits?"
    assert sum(step["share"] for step in told["steps"]) == 50
    assert all(step["begun"] for step in told["steps"])
    single = answers(run("generate", ONE, "--plan", "auto", *BUDGET, embedded=True))[0]
    plain = answers(run("generate", ONE, *BUDGET, embedded=True))[0]
    assert single["plan"]["source"] == "fallback"
    assert single["text"] == plain["text"]
    assert "plan" not in plain


def test_a_plan_as_json_a_file_and_a_schedule(run: Run, tmp_path: Path) -> None:
    steps = ["first", {"text": "second", "weight": 3}]
    (tmp_path / "plan.json").write_text(json.dumps(steps))
    inline, file = (
        answers(run("generate", PAIR, "--plan", plan, *BUDGET, embedded=True))[0]
        for plan in (json.dumps(steps), tmp_path / "plan.json")
    )
    assert inline["text"] == file["text"]
    assert inline["thinking"].startswith("Step 1: first")
    heading = 16  # tokens of "Step 1: first" and "Step 2: second", with room to write them
    assert [step["share"] for step in inline["plan"]["steps"]] == Plan.of(steps).shares(
        50, [heading, heading]
    )
    uniform = answers(
        run(
            "generate",
            PAIR,
            "--plan",
            json.dumps(steps),
            "--plan-schedule",
            "uniform",
            *BUDGET,
            embedded=True,
        )
    )[0]
    assert [step["share"] for step in uniform["plan"]["steps"]] == [25, 25]
    assert uniform["plan"]["steps"][1]["begun"]
    assert uniform["thinking_tokens"] <= 50


def test_what_is_shown_without_json(run: Run) -> None:
    outcome = run("generate", PAIR, "--plan", "auto", *BUDGET[:-1], embedded=True)
    assert outcome.exit_code == 0
    assert "planned, shares weighted" in outcome.stdout
    assert "· Sum of the two digits?" in outcome.stdout
    outcome = run("generate", ONE, "--plan", "auto", *BUDGET[:-1], embedded=True)
    assert "no plan was made: a single step" in outcome.stdout


def test_a_model_plans_for_itself_and_its_plans_are_kept(run: Run, tmp_path: Path) -> None:
    """The tiny model writes noise, which is no plan: two replies are paid for once, and then kept."""
    asked = ("generate", ONE, "--plan", "auto", "--plan-cache", tmp_path / "plans", *BUDGET)
    first, second = (answers(run(*asked))[0] for _ in range(2))
    assert first["plan"]["source"] == second["plan"]["source"] == "fallback"
    assert first["plan"]["planner_tokens"] == second["plan"]["planner_tokens"] >= 2
    assert len(list((tmp_path / "plans").iterdir())) == 1
    assert first["text"] == second["text"]


def test_a_plan_in_the_prompt(run: Run) -> None:
    plan = ("--plan", '["first", "second"]', *BUDGET)
    hidden, shown = (
        answers(run("generate", ONE, *plan, *more, embedded=True))[0] for more in ((), ("--show-plan",))
    )
    assert hidden["prompt"] == shown["prompt"] == ONE
    assert hidden["text"] != shown["text"]


def test_what_is_left_is_told_in_the_thought(run: Run) -> None:
    plan = json.dumps({"steps": ["one", {"text": "two", "weight": 20}], "firmness": 1, "floor": 0})
    asked = ("generate", PAIR, "--plan", plan, "--thinking-budget", "400", "--budget-notes", "--seed", "3")
    told = answers(run(*asked, "--json", embedded=True))[0]
    assert "of 383 thinking tokens left. MEDIUM" in told["thinking"]  # 129 are for the close and the answer
    assert 0 < told["note_tokens"] < told["thinking_tokens"]
    shown = run(*asked, embedded=True).stdout
    assert f"{told['note_tokens']} of them notes" in shown


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--plan", "[]"), "a plan of 0 steps"),
        (("--plan", json.dumps(["a"] * 200)), "a plan of 200 steps"),
        (("--plan", '[{"text": "a", "weight": -1}]'), "weight -1"),
        (("--plan", '[{"text": "a", "weight": NaN}]'), "weight nan"),
        (("--plan", '[{"text": "a", "after": [2]}, {"text": "b", "after": [1]}]'), "wait for each other"),
        (("--plan", '["a"'), "is not JSON"),
        (("--plan", "no-such-plan.json"), "cannot be read"),
        (("--plan", '["a"]', "--plan-schedule", "best"), "unknown schedule"),
        (("--plan-schedule", "uniform"), "--plan-schedule without --plan"),
        (("--show-plan",), "--show-plan without --plan"),
        (("--budget-notes",), "--budget-notes without --plan"),
        (("--plan", '["a"]', "--planner", "m"), "--planner without --plan auto"),
        (("--plan", "auto", "--planner-url", "http://127.0.0.1:9"), "--planner-url without --planner"),
    ],
)
def test_mistakes_are_told_before_the_model_is_loaded(
    arguments: tuple[str, ...], match: str, run: Run, no_model: None
) -> None:
    outcome = run("generate", ONE, *arguments)
    assert outcome.exit_code == 2
    assert match in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1


def test_each_line_of_a_file_has_its_own_plan(run: Run, tmp_path: Path) -> None:
    """As alone under that plan; what a line says replaces the command line's plan, and its schedule where it names one."""
    steps = ["first", {"text": "second", "weight": 3}]
    cases: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({}, ("--plan", "auto", "--plan-schedule", "uniform")),
        ({"plan": None}, ()),
        ({"plan": steps}, ("--plan", json.dumps(steps), "--plan-schedule", "uniform")),
        ({"plan": {"steps": steps, "schedule": "weighted"}}, ("--plan", json.dumps(steps))),
    ]
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps({"prompt": PAIR, **fields}) + "\n" for fields, _ in cases))
    greedy = ("--thinking-budget", "50", "--temperature", "0", "--json")
    shared = ("--plan", "auto", "--plan-schedule", "uniform")
    together = answers(run("generate", "--batch-file", path, *shared, *greedy, embedded=True))
    for (_, options), told in zip(cases, together, strict=True):
        alone = answers(run("generate", PAIR, *options, *greedy, embedded=True))[0]
        assert told["text"] == alone["text"]
        assert told.get("plan") == alone.get("plan")
    assert len({json.dumps(told.get("plan")) for told in together}) == 4


def test_a_bad_plan_in_a_file_is_told_with_its_line(run: Run, tmp_path: Path, no_model: None) -> None:
    path = tmp_path / "lines.jsonl"
    bad = [[], ["a"] * 200, "best", {"steps": ["a"], "schedule": "best"}, [{"text": "a", "weight": -1}], 5]
    path.write_text("".join(json.dumps({"prompt": ONE, "plan": plan}) + "\n" for plan in bad))
    outcome = run("generate", "--batch-file", path)
    assert outcome.exit_code == 2
    told = outcome.stderr.strip().splitlines()
    wanted = ("0 steps", "200 steps", "'best'", "unknown schedule", "weight -1", "type int")
    for number, (line, match) in enumerate(zip(told, wanted, strict=True), start=1):
        assert f"lines.jsonl, line {number}: " in line
        assert match in line


def test_the_help_names_every_schedule(run: Run) -> None:
    text = " ".join(run("generate", "--help").stdout.split())
    assert all(name in text for name in ALLOCATORS)
