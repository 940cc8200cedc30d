"""Harmony and its like: the answer is a channel too, so what begins a thought also begins an answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from budgetctl.cli.stream import ThoughtStreamer
from budgetctl.controller import BudgetController
from budgetctl.integrations.serve.splitter import ThoughtSplitter, ThoughtText
from budgetctl.segments import split_sequence
from budgetctl.state import thinking_state

THOUGHT = "<|channel|>analysis<|message|>One two three."
AFTER = "<|end|><|start|>assistant"


def scores_after(case: Any, written: str, **options: Any) -> torch.Tensor:
    """Controlled logits [V] of a model that likes every token alike."""
    prompt = case.prompt("Five?")
    controller = BudgetController(case.found, prompt_length=len(prompt), **options)
    ids = torch.tensor([[*prompt, *case.ids(written)]])
    return controller(ids, torch.zeros(1, len(case.tokenizer)))[0]


def allowed(case: Any, scores: torch.Tensor, text: str) -> bool:
    return bool(scores[case.ids(text)[0]] > -torch.inf)


def test_final_channel_after_a_forced_close(cases: dict[str, Any]) -> None:
    case = cases["gpt-oss"]
    spent = len(case.ids("One two three."))
    steps = ["<|start|>", "assistant", "<|channel|>", "final", "<|message|>", "Four", ".", "<|return|>"]
    written = THOUGHT + "<|end|>"
    for text in steps:
        scores = scores_after(case, written, thinking_budget=spent)
        assert allowed(case, scores, text), text
        written += text


def test_second_analysis_without_room_is_refused_by_its_name(cases: dict[str, Any]) -> None:
    case = cases["gpt-oss"]
    spent = len(case.ids("One two three."))
    scores = scores_after(case, THOUGHT + AFTER + "<|channel|>", thinking_budget=spent)
    assert not allowed(case, scores, "analysis")
    assert allowed(case, scores, "final")
    assert allowed(case, scores, "comment")
    assert (scores > -torch.inf).sum() == len(case.tokenizer) - 1


def test_second_analysis_with_room_is_free(cases: dict[str, Any]) -> None:
    case = cases["gpt-oss"]
    for written, text in (("<|channel|>", "analysis"), ("<|channel|>analysis", "<|message|>")):
        scores = scores_after(case, THOUGHT + AFTER + written, thinking_budget=50)
        assert allowed(case, scores, text)


def test_no_first_analysis_in_the_reserve(cases: dict[str, Any]) -> None:
    case = cases["gpt-oss"]
    options = {"thinking_budget": 50, "max_new_tokens": 8, "answer_reserve": 7}
    scores = scores_after(case, "<|channel|>", **options)
    assert not allowed(case, scores, "analysis")
    assert allowed(case, scores, "final")


def test_messages_of_the_answer_can_end(cases: dict[str, Any]) -> None:
    """A preamble on the commentary channel ends with the token that ends a thought."""
    case = cases["gpt-oss"]
    preamble = THOUGHT + AFTER + "<|channel|>commentary<|message|>Four five"
    scores = scores_after(case, preamble, thinking_budget=3)
    assert allowed(case, scores, "<|end|>")


@pytest.mark.parametrize(
    ("name", "written", "refused", "free"),
    [
        ("gemma", "", ["<|channel>"], ["<|tool_call>", "<turn|>", "Four"]),
        ("kimi k3", "<|open|>", ["think"], ["response", "tools"]),
        ("kimi k3", "<|open|>response<|sep|>Four<|close|>", ["think"], ["response", "message"]),
    ],
)
def test_other_channels(
    cases: dict[str, Any], name: str, written: str, refused: list[str], free: list[str]
) -> None:
    case = cases[name]
    thought = ("" if case.opens else case.open) + "One" + case.close
    scores = scores_after(case, thought + written, thinking_budget=1)
    for text in refused:
        assert not allowed(case, scores, text)
    for text in free:
        assert allowed(case, scores, text)


def test_the_end_of_a_message_is_no_leak(cases: dict[str, Any]) -> None:
    case = cases["gpt-oss"]
    prompt = case.prompt("Five?")
    parts = split_sequence([*prompt, *case.ids(THOUGHT + AFTER + PREAMBLE + FINAL)], len(prompt), case.found)
    assert case.text(list(parts.thought)) == "One two three."
    assert ([case.text(list(ids)) for ids in parts.messages], parts.stray_markers) == (["Four", "Five"], 0)


FINAL = "<|channel|>final<|message|>Five"
PREAMBLE = "<|channel|>commentary<|message|>Four" + AFTER
CALL = "<|channel|>commentary to=four<|message|>five"


@pytest.mark.parametrize(
    ("written", "thought", "answer"),
    [
        (THOUGHT + AFTER + FINAL, "One two three.", "Five"),
        (THOUGHT + AFTER + FINAL + "<|return|>", "One two three.", "Five"),
        (FINAL, "", "Five"),
        (THOUGHT + AFTER + PREAMBLE + FINAL, "One two three.", "Four\n\nFive"),
        (PREAMBLE + FINAL, "", "Four\n\nFive"),
        (THOUGHT + AFTER + THOUGHT + AFTER + FINAL, "One two three.\n\nOne two three.", "Five"),
        (THOUGHT + AFTER + FINAL + "<|end|>", "One two three.", "Five"),
        # What the model did not get to.
        (THOUGHT + AFTER + "<|channel|>final", "One two three.", ""),
        (THOUGHT + AFTER, "One two three.", ""),
        (THOUGHT + "<|end|><|start|>", "One two three.", ""),
        ("<|channel|>", "", ""),
        (THOUGHT + AFTER + THOUGHT, "One two three.\n\nOne two three.", ""),
        # Whom a tool call is for stands in its header.
        (THOUGHT + AFTER + CALL, "One two three.", "<|start|>assistant" + CALL),
        (CALL, "", CALL),
    ],
)
def test_the_answer_begins_after_its_header(
    cases: dict[str, Any], written: str, thought: str, answer: str
) -> None:
    case = cases["gpt-oss"]
    prompt, ids = case.prompt("Five?"), case.ids(written)
    parts = split_sequence([*prompt, *ids], len(prompt), case.found)
    assert "\n\n".join(case.text(list(message)) for message in parts.messages) == answer
    assert len(parts.answer) == sum(len(message) for message in parts.messages)
    # The same, token by token, as a server and a terminal read it.
    splitter, text = ThoughtSplitter(case.found, prompt), ThoughtText(case.tokenizer.backend_tokenizer)
    pieces = [piece for token in ids for piece in splitter.push(token)]
    told = text.read([*pieces, *splitter.finish()])
    assert "".join(body for thinking, body in told if thinking) == thought
    assert "".join(body for thinking, body in told if not thinking) == answer
    shown: list[tuple[str, bool]] = []
    controller: Any = SimpleNamespace(delimiters=case.found, account=lambda ids, width: ([9], [None], []))
    streamer = ThoughtStreamer(
        controller, case.tokenizer, lambda body, thinking: shown.append((body, thinking)), lambda *told: None
    )
    streamer.put(torch.tensor([prompt]))
    for token in ids:
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert "".join(body for body, _ in shown) == "\n\n".join(part for part in (thought, answer) if part)
    assert "".join(body for body, thinking in shown if thinking) == thought


@pytest.mark.parametrize("known", [True, False])
def test_a_marker_typed_into_a_message_opens_no_thought(cases: dict[str, Any], known: bool) -> None:
    """The message ends with the token that ends a thought, and the assistant's header follows it directly."""
    case = cases["gpt-oss"]
    prompt = case.prompt("Say <|channel|>analysis<|message|> twice")
    written = [*prompt, *case.ids(THOUGHT + AFTER + "<|channel|>final<|message|>Four")]
    for ids, used, closed in ((prompt, 0, False), (written, len(case.ids("One two three.")), True)):
        state = thinking_state(torch.tensor([ids]), case.found, prompt_length=len(prompt) if known else None)
        assert (state.used.item(), state.closed.item()) == (used, closed)
        assert (state.started.item(), state.generated.item()) == (closed, len(ids) - len(prompt))


def test_without_the_length_of_the_prompt_the_budget_is_kept_after_a_typed_marker(
    cases: dict[str, Any],
) -> None:
    case = cases["gpt-oss"]
    prompt = case.prompt("Say <|channel|>analysis<|message|> one two three four five six")
    thought = case.ids("One two three.")
    controller = BudgetController(case.found, thinking_budget=len(thought))
    ids = torch.tensor([[*prompt, *case.ids("<|channel|>analysis<|message|>"), *thought]])
    for length, closes in ((ids.shape[1] - 1, False), (ids.shape[1], True)):
        scores = controller(ids[:, :length], torch.zeros(1, len(case.tokenizer)))[0]
        assert ((scores > -torch.inf).sum() == 1) == closes
    assert scores[case.found.forced_end_ids[0]] == 0
