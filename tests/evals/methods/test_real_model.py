"""The methods on a model that runs: against each other, and against other ways to the same numbers."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from budgetctl.early_exit import EarlyExit
from budgetctl.evals.early_exit import exit_records
from budgetctl.evals.harness.method import Item, Setting
from budgetctl.evals.harness.transformers_engine import TransformersEngine
from budgetctl.evals.load import LoadedModel, load_model
from budgetctl.evals.methods.early_exits import EarlyExitMethod, confident
from budgetctl.evals.methods.model_texts import WITHOUT_WORDS
from budgetctl.evals.methods.registry import method_named
from budgetctl.reasoner.tasks import Question, take_questions

ROOM = 40


@pytest.fixture(scope="module")
def talking(loaded: LoadedModel) -> LoadedModel:
    """Random weights in float64; thinks and answers with more than a few tokens."""
    model = copy.deepcopy(loaded.model)
    ends = loaded.tokenizer.convert_tokens_to_ids(["</think>", loaded.tokenizer.eos_token])
    with torch.no_grad():
        model.lm_head.weight[ends] *= 0.4
    # Probes run on the model of the installation.
    return LoadedModel(model, loaded.tokenizer, replace(loaded.installation, model=model))


def items_of(questions: list[Question]) -> list[Item]:
    return [
        Item("embedded", str(i), q.prompt, q.answer, q.level, f"embedded/{q.family}")
        for i, q in enumerate(questions)
    ]


def run(engine: TransformersEngine, name: str, items: list[Item], setting: Setting, room: int = ROOM) -> Any:
    return method_named(name).answer(engine, items, setting, list(range(len(items))), room)


@pytest.mark.parametrize("budget", [0, 1, 3, 9])
def test_two_calls_write_what_one_does(talking: LoadedModel, asked: list[Question], budget: int) -> None:
    """Where nothing but the close is written, the recipe is the hard cut; the noise goes on over the calls."""
    engine, items = TransformersEngine(talking), items_of(asked)
    once = run(engine, "hard-cut", items, Setting(budget=budget))
    twice = run(engine, "two-pass", items, Setting(budget=budget))
    assert {answer.close for answer in once} >= ({"forced"} if budget < 9 else {"natural"})
    same = ("thought", "answer", "thinking_tokens", "answer_tokens", "correct", "leaked")
    for a, b in zip(once, twice, strict=True):
        assert [getattr(a, name) for name in same] == [getattr(b, name) for name in same]
        assert (
            a.close == b.close or b.thinking_tokens == budget
        )  # "forced" is what the second pass calls a full thought


@pytest.mark.parametrize("name", ["s1", "s1-wait", "deer-cap", "dynasor-cap"])
def test_no_budget_is_exceeded(talking: LoadedModel, asked: list[Question], name: str) -> None:
    engine, items = TransformersEngine(talking), items_of(asked)
    for budget in (2, 7):
        answers = run(engine, name, items, Setting(budget=budget))
        assert max(answer.thinking_tokens for answer in answers) <= budget
        assert any(answer.close == "forced" for answer in answers)


def test_probes_cost_what_the_comparison_of_exits_counts(talking: LoadedModel, asked: list[Question]) -> None:
    fields = confident(replace(WITHOUT_WORDS, probe_tokens=4)) | {"threshold": 0.01, "every": 2}
    method = EarlyExitMethod("deer", lambda texts: fields)
    answers = method.answer(TransformersEngine(talking), items_of(asked), Setting(), list(range(7)), ROOM)
    records = exit_records(talking, EarlyExit(**fields), asked, list(range(7)), max_new_tokens=ROOM)
    # The method closes a thought that comes near the end of the room.
    pairs = [(a, r) for a, r in zip(answers, records, strict=True) if r.thinking_tokens < ROOM * 0.8]
    found = [(a.thinking_tokens, a.overhead_tokens, a.read_tokens, a.close) for a, _ in pairs]
    assert found == [(r.thinking_tokens, r.probe_tokens, r.read_tokens, r.close) for _, r in pairs]
    assert {"early"} <= {r.close for _, r in pairs}
    assert sum(r.probe_tokens for _, r in pairs) > 4


@pytest.fixture(scope="module")
def reasoner() -> TransformersEngine:
    return TransformersEngine(load_model(with_predictor=True))


def test_published_guidance_without_need_is_full_thinking(reasoner: TransformersEngine) -> None:
    items = items_of(take_questions("test", 4))
    full = run(reasoner, "full", items, Setting(), 60)
    free = run(reasoner, "gamma-published", items, Setting(budget=10**6), 60)
    assert [answer.thought for answer in free] == [answer.thought for answer in full]
    tight = run(reasoner, "gamma-published", items, Setting(budget=12), 60)
    cut = run(reasoner, "hard-cut", items, Setting(budget=12), 60)
    assert max(answer.thinking_tokens for answer in tight) <= 12
    assert [answer.thought for answer in tight] != [answer.thought for answer in cut]


@pytest.mark.parametrize(
    "name", ["no-thinking", "prompt-budget", "prompt-limit", "budgetctl-kv", "budgetctl-plan"]
)
def test_the_others_run(reasoner: TransformersEngine, name: str) -> None:
    questions = [q for q in take_questions("test", 16) if q.family == "pair"][:2]
    budget = None if name in ("no-thinking", "prompt-budget") else 20
    answers = run(reasoner, name, items_of(questions), Setting(budget=budget), 48)
    for answer in answers:
        assert (answer.overhead_tokens > 0) == (name == "prompt-budget")
        assert (answer.thinking_tokens == 0) == (name == "no-thinking") or answer.close == "natural"
        if name.startswith("budgetctl"):
            assert answer.thinking_tokens <= 20
