"""Methods that write into the prompt or turn a knob: what the engine is asked, and what is counted."""

from __future__ import annotations

from typing import Any

import pytest

from budgetctl.early_exit import EarlyExit
from budgetctl.errors import EvalError
from budgetctl.evals.harness.method import Item, Setting
from budgetctl.evals.methods import no_thinking
from budgetctl.evals.methods.model_texts import PUBLISHED, WITHOUT_WORDS
from budgetctl.evals.methods.no_thinking import NoThinking
from budgetctl.evals.methods.prompted import PromptBudget, PromptLimit
from budgetctl.evals.methods.registry import METHODS, method_named

WITH = Setting(budget=24)


def test_names() -> None:
    for name in METHODS:
        method = method_named(name)
        assert method.name == name
        assert method.takes in ("budget", "effort", "none")
    with pytest.raises(EvalError, match="unknown method 'deerr': expected one of full, no-thinking, "):
        method_named("deerr")


@pytest.mark.parametrize("texts", [PUBLISHED, WITHOUT_WORDS])
def test_no_thinking_thinks_nothing(
    scripted: Any, dial: Item, texts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(no_thinking, "texts_for", lambda engine: texts)
    thought = f"<think>\n{texts.dummy_thought}</think>{texts.after_close}"
    engine = scripted(lambda prompt: "Answer: 4<|im_end|>" if prompt.endswith(thought) else "6-2=4\n")
    answer = NoThinking().answer(engine, [dial], Setting(), [0], 40)[0]
    assert (answer.thinking_tokens, answer.thought, answer.close) == (0, "", "none")
    assert (answer.answer, answer.answer_tokens, answer.correct) == ("Answer: 4", 4, True)
    assert (answer.overhead_tokens, answer.read_tokens) == (0, 0)
    prompt = engine.tokenizer.decode(engine.calls[0]["prompts"][0])
    assert prompt.endswith(thought)


def replies(estimate: str) -> Any:
    def reply(prompt: str) -> str:
        if "square brackets" in prompt:
            return estimate
        return f"{prompt.count('less than')}</think>\n\nAnswer: 4<|im_end|>"

    return reply


def test_an_estimate_is_paid_for_and_stated(scripted: Any, dial: Item) -> None:
    estimate = "Budget: [[ 12 ]]<|im_end|>"
    engine = scripted(replies(estimate))
    answer = PromptBudget().answer(engine, [dial], Setting(), [7], 40)[0]
    stated = engine.prompt(dial.prompt + "\nLet's think step by step and use less than 12 tokens:")
    assert [call["prompts"] for call in engine.calls][1] == [stated]
    assert [call["seeds"] for call in engine.calls] == [None, [7]]
    asked = engine.tokenizer.decode(engine.calls[0]["prompts"][0])
    assert dial.prompt in asked
    assert asked.endswith("<think>\n</think>")
    assert (answer.overhead_tokens, answer.read_tokens) == (len(engine.ids(estimate)), len(stated))
    assert (answer.thinking_tokens, answer.thought, answer.seconds) == (1, "1", 1.0)
    assert (answer.budget, answer.thinking_budget, answer.extra) == (None, None, {"estimated_budget": 12})


@pytest.mark.parametrize("estimate", ["Answer: 40<|im_end|>", "[[" + "1" * 60])
def test_without_an_estimate_no_budget_is_stated(scripted: Any, dial: Item, estimate: str) -> None:
    engine = scripted(replies(estimate))
    answer = PromptBudget().answer(engine, [dial], Setting(), None, 40)[0]
    assert engine.calls[1]["prompts"] == [engine.prompt(dial.prompt)]
    assert answer.overhead_tokens == min(len(engine.ids(estimate)), 32)
    assert answer.extra == {"estimated_budget": None}


def test_a_limit_is_stated_in_words(scripted: Any, dial: Item) -> None:
    engine = scripted(replies(""))
    answer = PromptLimit().answer(engine, [dial], WITH, [7], 40)[0]
    assert "solve it using up to 8 words." in engine.tokenizer.decode(engine.calls[0]["prompts"][0])
    assert (answer.budget, answer.thinking_budget, answer.overhead_tokens) == (24, None, 0)
    assert answer.extra == {"stated_words": round(24 * WITHOUT_WORDS.words_a_token)}
    with pytest.raises(EvalError, match="'prompt-limit' without a thinking budget"):
        PromptLimit().answer(engine, [dial], Setting(), [7], 40)


@pytest.mark.parametrize(
    ("name", "setting", "kind"),
    [
        ("deer", Setting(), "confidence"),
        ("deer", WITH, "confidence"),
        ("deer-cap", WITH, "confidence"),
        ("dynasor", Setting(), "agreement"),
        ("dynasor-cap", WITH, "agreement"),
        ("budgetctl-exit", WITH, "confidence"),
    ],
)
def test_probes_are_counted(scripted: Any, dial: Item, name: str, setting: Setting, kind: str) -> None:
    engine = scripted(replies(""), {"probes": 3, "probe_tokens": 11, "read_tokens": 170})
    answer = method_named(name).answer(engine, [dial], setting, [7], 40)[0]
    assert (answer.overhead_tokens, answer.read_tokens, answer.extra["probes"]) == (11, 170, 3)
    knobs = engine.calls[0]["knobs"]
    rule = EarlyExit.of(knobs["early_exit"])  # refuses fields that do not go together
    assert rule is not None
    assert (rule.method, rule.answer_prompt, rule.every) == (kind, "\n\nAnswer:", "line")
    assert knobs["thinking_budget"] == setting.budget
    # Only ours is guided.
    assert ("guidance_strength" in knobs) == (name != "budgetctl-exit")


def test_probes_that_nobody_counts_are_refused(scripted: Any, dial: Item) -> None:
    with pytest.raises(EvalError, match="'deer' on an engine that does not tell its probe_tokens: expected"):
        method_named("deer").answer(scripted(replies("")), [dial], Setting(), [7], 40)
    for name in ("deer-cap", "dynasor-cap", "budgetctl-exit", "budgetctl-kv", "budgetctl-plan"):
        with pytest.raises(EvalError, match=f"'{name}' without a thinking budget"):
            method_named(name).answer(scripted(replies("")), [dial], Setting(), [7], 40)


def test_published_rules_are_valid() -> None:
    from budgetctl.evals.methods.early_exits import agreeing, confident

    deer, dynasor = EarlyExit.of(confident(PUBLISHED)), EarlyExit.of(agreeing(PUBLISHED))
    assert deer is not None
    assert dynasor is not None
    assert (deer.threshold, deer.turn, deer.every) == (0.95, "Wait", "line")
    assert (dynasor.window, dynasor.every, dynasor.probe_tokens) == (3, 64, 20)


def test_slots_are_half_of_prompt_and_budget(scripted: Any, dial: Item) -> None:
    engine = scripted(replies(""))
    long = Item("embedded", "d1", dial.prompt * 2, "4", 1, "embedded/dial")
    answers = method_named("budgetctl-kv").answer(engine, [dial, long], Setting(budget=100), [7, 8], 40)
    slots = round((len(engine.prompt(long.prompt)) + 100) / 2)
    assert engine.calls[0]["knobs"] == {"thinking_budget": 100, "kv_budget": slots}
    assert [a.extra for a in answers] == [{"kv_budget": slots}] * 2
    assert answers[0].kv_bytes == 100 + len(engine.prompt(dial.prompt))
    method_named("budgetctl-kv").answer(engine, [dial], Setting(budget=1), [7], 40)
    assert engine.calls[1]["knobs"]["kv_budget"] == 32
