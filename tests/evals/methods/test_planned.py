"""Plans by rule cost nothing; plans by the model are paid for, retries among them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from budgetctl.evals.harness.method import Item, Setting
from budgetctl.evals.methods.planned import BudgetctlPlan
from budgetctl.plan.prompts import planning_prompt

PAIR = "Dial 1 shows 7: turn -5 +2. Dial 2 shows 5: turn -3. Sum of the two digits?"
PLAN = json.dumps({"steps": [{"text": "a", "credit": 60}, {"text": "b", "credit": 40}]})


def answering(prompt: str) -> str:
    return "6\n</think>\n\nAnswer: 4<|im_end|>"


def test_plans_by_rule_are_free(scripted: Any, dial: Item) -> None:
    pair = Item("embedded", "p0", PAIR, "6", 3, "embedded/pair")
    engine = scripted(answering)
    answers = BudgetctlPlan().answer(engine, [dial, pair], Setting(budget=30), [1, 2], 50)
    knobs = engine.calls[0]["knobs"]
    assert [(row["thinking_budget"], len(row["plan"].steps)) for row in knobs] == [(30, 1), (30, 3)]
    assert [(a.overhead_tokens, a.read_tokens) for a in answers] == [(0, 0), (0, 0)]
    assert [a.extra["plan_source"] for a in answers] == ["fallback", "planned"]
    assert len(engine.calls) == 1


def test_plans_by_the_model_are_paid_for(scripted: Any, dial: Item) -> None:
    """The first question is planned at once, the second after a retry, the third not at all."""
    items = [replace(dial, id=str(i), prompt=f"Question {i}", verifier="") for i in range(3)]
    bad, good = "</think>no plan<|im_end|>", f"</think>{PLAN}<|im_end|>"

    def reply(prompt: str) -> str:
        if "JSON object" not in prompt:
            return answering(prompt)
        again = "could not be used" in prompt
        return good if "Question 0" in prompt or ("Question 1" in prompt and again) else bad

    engine = scripted(reply)
    answers = BudgetctlPlan().answer(engine, items, Setting(budget=30), [1, 2, 3], 50)
    assert [len(call["prompts"]) for call in engine.calls] == [3, 2, 3]
    assert [call["seeds"] for call in engine.calls] == [None, None, [1, 2, 3]]
    assert engine.calls[0]["prompts"] == [engine.prompt(planning_prompt(item.prompt)) for item in items]
    tokens = [len(engine.ids(good)), len(engine.ids(bad + good)), len(engine.ids(bad + bad))]
    assert [a.overhead_tokens for a in answers] == tokens
    questions = [len(engine.prompt(item.prompt)) for item in items]
    retries = [0, *map(len, engine.calls[1]["prompts"])]
    assert [a.read_tokens for a in answers] == [q + r for q, r in zip(questions, retries, strict=True)]
    assert [(a.extra["plan_source"], a.extra["plan_steps"]) for a in answers] == [
        ("planned", 2),
        ("planned", 2),
        ("fallback", 1),
    ]
    assert [row["plan"].planner_tokens for row in engine.calls[2]["knobs"]] == tokens
    assert [a.seconds for a in answers] == [1.0, 1.5, 1.5]
