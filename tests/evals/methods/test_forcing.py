"""Budget forcing and the two calls, against sequences written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetctl.errors import EvalError
from budgetctl.evals.harness.method import Item, Setting
from budgetctl.evals.methods import forcing
from budgetctl.evals.methods.basic import FullThinking
from budgetctl.evals.methods.forcing import BudgetForcing, BudgetForcingWithWait, TwoPass
from budgetctl.evals.methods.model_texts import PUBLISHED, WITHOUT_WORDS, texts_for

TEXT = "6-2=4\ncheck 4+2=6\n</think>\n\nAnswer: 4<|im_end|>"
THOUGHT = "6-2=4\ncheck 4+2=6\n"


def ask(method: Any, engine: Any, item: Item, budget: int | None, room: int = 60, seed: int = 3) -> Any:
    return method.answer(engine, [item], Setting(budget=budget), [seed], room)[0]


@pytest.mark.parametrize("method", [BudgetForcing(), TwoPass()])
def test_a_thought_over_the_budget_is_closed(method: Any, scripted: Any, following: Any, dial: Item) -> None:
    engine = scripted(following(TEXT))
    budget = 5
    answer = ask(method, engine, dial, budget)
    thought = engine.ids(TEXT)[:budget]
    assert answer.thought == engine.tokenizer.decode(thought)
    assert (answer.thinking_tokens, answer.close, answer.thinking_budget) == (budget, "forced", budget)
    written = WITHOUT_WORDS.final_answer if method.name == "s1" else WITHOUT_WORDS.after_close
    assert answer.answer == (written + " 4").strip()
    assert answer.correct
    prompt = engine.prompt(dial.prompt)
    second = [*prompt, *thought, *engine.ids("</think>"), *engine.ids(written)]
    assert [call["prompts"] for call in engine.calls] == [[prompt], [second]]
    # The noise goes on where the sequence does, and both calls together have the room of one.
    assert [call["offsets"] for call in engine.calls] == [[0], [len(second) - len(prompt)]]
    assert [call["max_new_tokens"] for call in engine.calls] == [5, 60 - (len(second) - len(prompt))]
    assert (answer.read_tokens, answer.overhead_tokens) == (len(second), 0)
    assert (answer.seconds, answer.kv_bytes, answer.extra) == (1.0, 100 + len(second), {"calls": 2})


@pytest.mark.parametrize("method", [BudgetForcing(), TwoPass()])
def test_a_thought_within_the_budget_is_that_of_full_thinking(
    method: Any, scripted: Any, following: Any, dial: Item
) -> None:
    full = FullThinking().answer(scripted(following(TEXT)), [dial], Setting(), [3], 60)[0]
    for budget in range(full.thinking_tokens + 1, 40):
        answer = ask(method, scripted(following(TEXT)), dial, budget)
        for name in ("thought", "answer", "thinking_tokens", "answer_tokens", "close", "correct"):
            assert getattr(answer, name) == getattr(full, name)
        # One call where the budget had room for the answer too.
        whole = len(scripted(following(TEXT)).ids(TEXT)) <= budget
        assert answer.extra["calls"] == (1 if whole else 2)
        assert (answer.read_tokens == 0) == whole


def test_the_sentence_counts_as_thought(
    scripted: Any, following: Any, dial: Item, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forcing, "texts_for", lambda engine: PUBLISHED)
    engine = scripted(following(TEXT))
    answer = ask(TwoPass(), engine, dial, 5, room=200)
    assert answer.thinking_tokens == 5 + len(engine.ids(PUBLISHED.early_stop))
    assert answer.thought.endswith("directly now.\n")


def test_no_budget_at_all_is_no_call_for_a_thought(scripted: Any, following: Any, dial: Item) -> None:
    engine = scripted(following(TEXT))
    answer = ask(TwoPass(), engine, dial, 0)
    assert (answer.thinking_tokens, answer.close, answer.read_tokens) == (0, "forced", 0)
    assert len(engine.calls) == 1
    with pytest.raises(EvalError, match="'two-pass' without a thinking budget: expected one; give budgets"):
        ask(TwoPass(), engine, dial, None)


def lines(prompt: str) -> str:
    """Closes after each line; answers after a close."""
    if "</think>" in prompt:
        return " 4<|im_end|>"
    return "6-2=4\n</think>\n\nAnswer: 4<|im_end|>"


def test_wait_is_written_where_the_thought_would_end(scripted: Any, dial: Item) -> None:
    engine = scripted(lines)
    answer = ask(BudgetForcingWithWait(waits=2), engine, dial, 100, room=150)
    assert answer.thought == "6-2=4\nWait6-2=4\nWait6-2=4\n"
    assert (answer.close, answer.answer) == ("natural", "4")
    line, wait = len(engine.ids("6-2=4\n")), len(engine.ids("Wait"))
    assert answer.thinking_tokens == 3 * line + 2 * wait
    prompt = len(engine.prompt(dial.prompt))
    reads = [prompt + line + wait, prompt + 2 * line + 2 * wait, prompt + 3 * line + 2 * wait + 1]
    assert (answer.read_tokens, answer.extra) == (sum(reads), {"calls": 4})


def test_the_budget_ends_a_thought_that_was_extended(scripted: Any, dial: Item) -> None:
    engine = scripted(lines)
    line, wait = len(engine.ids("6-2=4\n")), len(engine.ids("Wait"))
    budget = line + wait + 2
    answer = ask(BudgetForcingWithWait(waits=6), engine, dial, budget)
    assert answer.thinking_tokens == budget
    assert answer.thought == "6-2=4\nWait" + engine.tokenizer.decode(engine.ids("6-2=4\n")[:2])
    assert answer.close == "forced"
    # No room for "Wait" and a token.
    assert ask(BudgetForcingWithWait(), scripted(lines), dial, line + wait).thought == "6-2=4\n"


@settings(max_examples=40, deadline=None)
@given(
    budgets=st.integers(0, 40),
    waits=st.integers(0, 5),
    segments=st.lists(st.integers(0, 9), min_size=1, max_size=4),
)
def test_waiting_never_exceeds_the_budget(budgets: int, waits: int, segments: list[int]) -> None:
    from tests.evals.methods.conftest import ScriptedEngine

    def reply(prompt: str) -> str:
        thought = prompt.rpartition("<think>\n")[2]
        if "</think>" in thought:
            return "\n\nAnswer: 4<|im_end|>"
        begun = thought.rpartition("Wait")[2].count("=")
        size = segments[thought.count("Wait") % len(segments)]
        return "=" * max(size - begun, 0) + "</think>\n\nAnswer: 4<|im_end|>"

    engine = ScriptedEngine(reply)
    items = [Item("embedded", str(i), f"{i}?", "4", 1, "embedded/dial") for i in range(2)]
    for answer in BudgetForcingWithWait(waits).answer(engine, items, Setting(budget=budgets), [1, 2], 80):
        assert answer.thinking_tokens <= budgets
        assert answer.thought.count("Wait") <= waits
        assert answer.correct
        natural = segments[0] <= budgets
        assert (answer.thinking_tokens >= segments[0]) or not natural


def test_rows_of_a_batch_go_their_own_ways(scripted: Any, following: Any, dial: Item) -> None:
    other = Item("embedded", "d1", "A dial shows 1: turn +3. Where does it stop?", "4", 1, "embedded/dial")
    short = "1+3=4\n</think>\n\nAnswer: 4<|im_end|>"
    replies = {"shows 6": following(TEXT), "shows 1": following(short)}

    def reply(prompt: str) -> str:
        return next(follow for sign, follow in replies.items() if sign in prompt)(prompt)

    budget = len(scripted(reply).ids(short))
    for method in (BudgetForcing(), BudgetForcingWithWait(waits=1), TwoPass()):
        engine = scripted(reply)
        both = method.answer(engine, [dial, other], Setting(budget=budget), [5, 6], 60)
        alone = [ask(method, scripted(reply), item, budget, seed=s) for item, s in ((dial, 5), (other, 6))]
        assert both == alone


def test_texts_go_by_the_tokenizer(scripted: Callable[..., Any]) -> None:
    class Words:
        class tokenizer:
            @staticmethod
            def encode(text: str, add_special_tokens: bool) -> list[str]:
                return text.split()

    assert texts_for(Words()) == PUBLISHED  # type: ignore[arg-type]
    assert texts_for(scripted(str)) == WITHOUT_WORDS
