"""Where a thought stands, read from whole conversations of every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from budgetctl.segments import split_sequence
from budgetctl.state import ThinkingState, thinking_state


def state_of(case: Any, ids: list[int], prompt: list[int] | None = None) -> ThinkingState:
    length = None if prompt is None else len(prompt)
    return thinking_state(torch.tensor([ids]), case.found, prompt_length=length)


def turns(case: Any) -> tuple[str, str, str]:
    """A user who types the markers, an answer after a thought, another question."""
    typed = f"Do not say {case.open} two {case.close} nor {case.open}"
    return typed, f"{case.open}One two.{case.close}{case.answer}", "Five?"


def test_history_and_typed_markers_do_not_count(case: Any) -> None:
    for conversation in (turns(case)[:1], turns(case)):
        prompt = case.prompt(*conversation)
        for known in (prompt, None):
            state = state_of(case, prompt, known)
            assert state.thinking.item() == state.started.item() == case.opens
            assert state.at_start.item() == case.opens
            assert (state.used.item(), state.closed.item(), state.finished.item()) == (0, False, False)
            if known or case.by_default:
                assert state.generated.item() == 0


def test_typed_marker_at_the_end_of_a_question(case: Any) -> None:
    prompt = case.prompt(f"Say {case.open}")
    state = state_of(case, prompt, prompt)
    assert (state.thinking.item(), state.used.item()) == (case.opens, 0)


def test_thinking_switched_off(case: Any) -> None:
    if case.off is None:
        assert not case.off_with
        return
    prompt = case.prompt("Five?", off=True)
    assert case.text(prompt).endswith(case.off)
    for row in (prompt, [*prompt, *case.ids(case.answer)]):
        for known in (prompt, None):
            state = state_of(case, row, known)
            assert not state.thinking.item()
            assert state.started.item() == state.closed.item() == case.off_closed
            assert state.used.item() == 0
        parts = split_sequence(row, len(prompt), case.found)
        assert (parts.thought, parts.close_span) == ((), None)
        assert list(parts.answer) == row[len(prompt) :] or not case.off_closed


def test_an_empty_thought_that_the_model_writes_counts(cases: dict[str, Any]) -> None:
    """As under the soft switch of Qwen3: the white space is the model's own, unlike the template's before it."""
    case = cases["qwen3 hybrid"]
    prompt, written = case.prompt("Five? /no_think"), case.ids("<think>\n\n</think>\n\nFour.")
    state = state_of(case, [*prompt, *written], prompt)
    assert (state.closed.item(), state.used.item()) == (True, len(case.ids("\n\n")))
    again = [*case.prompt("Five?", off=True), *case.ids("Four.<think>One two</think>")]
    state = state_of(case, again, case.prompt("Five?", off=True))
    assert (state.closed.item(), state.used.item()) == (True, len(case.ids("<think>One two")))


def test_a_thought_with_text_that_the_prompt_closes_counts(cases: dict[str, Any]) -> None:
    case = cases["qwen3 hybrid"]
    prompt = [*case.prompt("Five?"), *case.ids("<think>\nOne two\n</think>\n\n")]
    assert state_of(case, prompt, prompt).used.item() == len(case.ids("\nOne two\n"))


def test_a_thought_from_open_to_end(case: Any) -> None:
    prompt = case.prompt(*turns(case))
    opening = [] if case.opens else case.ids(case.before + case.open)
    thought = case.ids("One two three")
    row = [*prompt, *opening, *thought]
    for known in (prompt, None):
        state = state_of(case, row, known)
        assert (state.thinking.item(), state.used.item()) == (True, len(thought))
    closed = [*row, *case.found.forced_end_ids]
    state = state_of(case, closed, prompt)
    assert (state.thinking.item(), state.closed.item(), state.used.item()) == (False, True, len(thought))
    answer = case.ids(case.answer)
    state = state_of(case, [*closed, *answer], prompt)
    assert (state.closed.item(), state.answer_tokens.item()) == (True, len(answer))
    ended = [*closed, *answer, case.tokenizer.convert_tokens_to_ids(case.end)]
    assert state_of(case, ended, prompt).finished.item()


def test_close_in_the_model_s_own_spelling(case: Any) -> None:
    prompt = case.prompt("Five?")
    written = ("" if case.opens else case.before + case.open) + case.thought_text + case.close + case.answer
    ids = case.ids(case.text(prompt) + written)
    assert ids[: len(prompt)] == prompt
    state = state_of(case, ids, prompt)
    assert (state.thinking.item(), state.closed.item()) == (False, True)
    assert 0 < state.used.item() <= len(case.ids(case.thought_text))


@pytest.mark.parametrize("name", ["deepseek v3.1", "exaone 4"])
def test_switched_on_where_off_is_the_default(cases: dict[str, Any], name: str) -> None:
    case = cases[name]
    assert not case.found.opened_by_template
    for switches, thinking in ((case.off_with, False), (case.on_with, True)):
        text = case.tokenizer.apply_chat_template(
            [{"role": "user", "content": "Five?"}], tokenize=False, add_generation_prompt=True, **switches
        )
        assert state_of(case, case.ids(text)).thinking.item() is thinking


def test_tool_call_in_a_thought_ends_it(case: Any) -> None:
    prompt = case.prompt("Five?")
    opening = [] if case.opens else case.ids(case.before + case.open)
    for call in case.found.tool_call_ids:
        state = state_of(case, [*prompt, *opening, *case.ids("One two"), *call, *case.ids("four")], prompt)
        assert (state.thinking.item(), state.closed.item()) == (False, True)


def test_a_thought_kept_in_the_history(cases: dict[str, Any]) -> None:
    case = cases["minimax m2"]
    prompt = case.prompt(*turns(case))
    assert case.text(prompt).count("<think>") == 4  # two typed, one kept, one opened
    state = state_of(case, prompt, prompt)
    assert (state.thinking.item(), state.used.item()) == (True, 0)


def test_short_forms_of_granite(cases: dict[str, Any]) -> None:
    case = cases["granite 3.2"]
    prompt = case.prompt("Five?")
    row = [*prompt, *case.ids("Here's my thought process: One two.\n")]
    assert state_of(case, row, prompt).thinking.item()
    for close in ("Here's my response:", "Here is my response:"):
        assert state_of(case, [*row, *case.ids(close + " Four.")], prompt).closed.item()
