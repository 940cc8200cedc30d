"""Budget forcing as a processor: a close exactly where the budget ends, and otherwise the logits as they came."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.errors import BudgetError
from budgetctl.integrations.vllm.budget_forcing import BudgetForcing
from budgetctl.integrations.vllm.served_model import ServedModel
from budgetctl.training.rollouts import split_completion
from tests.budgetctl.integrations.vllm.fakes import CONTEXT, States, Update, context_of, sampling
from tests.conformance.strategies import BOT, EOS, HEAD, LINE, PROFILE, TOOL, USER, VOCAB, A, B

OPEN, CLOSE, OTHER = 10, 12, 13
SINGLE = ThinkingDelimiters(
    (OPEN,), ((CLOSE,),), (CLOSE,), turn_start_ids=(BOT, HEAD), eos_ids=(EOS,), tool_call_ids=((TOOL,),)
)
PHRASE = replace(SINGLE, forced_end_ids=(A, B, CLOSE))
SPELLED = replace(SINGLE, natural_end_ids=((CLOSE, OTHER),), forced_end_ids=(CLOSE, OTHER))
PROMPT = [USER, A, BOT, HEAD, OPEN]


def forcing(delimiters: ThinkingDelimiters, boundaries: Any, states: Any = None) -> BudgetForcing:
    """The served tokenizer shows other markers than the trainer has set."""
    served = ServedModel(replace(delimiters, forced_end_ids=(OTHER,)), boundaries, None, None, CONTEXT)

    class Processor(BudgetForcing):
        def read_model(self, vllm_config: Any) -> ServedModel:
            return served

    Processor.delimiters = delimiters
    return Processor(None, torch.device("cpu") if states is None else states, False)


def written(delimiters: ThinkingDelimiters, boundaries: Any, text: list[int], budget: int) -> list[int]:
    """What a request writes whose model wants the tokens of ``text`` in turn; its logits are checked at each step."""
    processor = forcing(delimiters, boundaries)
    outputs: list[int] = []
    params = sampling(4 * len(text), thinking_budget=budget)
    processor.update_state(Update(1, added=[(0, params, PROMPT, outputs)]))
    generator = torch.Generator().manual_seed(len(text))
    for token in text:
        logits = torch.randn(1, VOCAB, generator=generator)
        found = processor.apply(logits.clone())
        if torch.equal(found, logits):
            outputs.append(token)
        else:
            outputs.append(int(found.argmax()))
            assert found.isneginf().sum() == VOCAB - 1
        if outputs[-1] == EOS:
            break
        processor.update_state(None)
    return outputs


@PROFILE
@given(
    text=st.lists(st.sampled_from([A, B, LINE, OPEN, CLOSE, OTHER, TOOL, EOS]), min_size=1, max_size=14),
    budget=st.integers(0, 6),
    d=st.sampled_from([SINGLE, PHRASE, SPELLED]),
)
def test_tokens_are_forced_at_the_budget_and_nowhere_else(
    text: list[int], budget: int, d: ThinkingDelimiters, boundaries: Any
) -> None:
    """Not at a line end before it, not in a second thought, and neither an end of sequence nor a tool call is moved."""
    got = written(d, boundaries, text, budget)
    expected: list[int] = []
    for token in text:
        open_yet = split_completion(tuple(expected), d)[1] is None
        begun = 0
        if open_yet and len(expected) >= budget:
            sizes = range(len(d.forced_end_ids))
            begun = max(n for n in sizes if tuple(expected[len(expected) - n :]) == d.forced_end_ids[:n])
            token = d.forced_end_ids[begun]
        expected.append(token)
        if token == EOS:
            break
    assert got == expected


def test_requests_without_a_budget_keep_their_logits(boundaries: Any) -> None:
    processor = forcing(SINGLE, boundaries)
    added: list[Any] = [
        (0, sampling(8), PROMPT, [A]),
        (1, sampling(8, thinking_budget=1), PROMPT, [A]),
        (2, sampling(8, thinking_budget=2), PROMPT, [A]),
    ]
    processor.update_state(Update(3, added=added))
    logits = torch.randn(3, VOCAB)
    found = processor.apply(logits.clone())
    assert torch.equal(found[[0, 2]], logits[[0, 2]])
    assert found[1].isfinite().nonzero().tolist() == [[CLOSE]]


def test_the_second_runner_forces_the_same(boundaries: Any) -> None:
    states = States(4, 32)
    processor = forcing(SINGLE, boundaries, states)
    texts = {1: [*PROMPT, A, B], 3: [*PROMPT, A]}
    for slot, tokens in texts.items():
        states.prompt_len.np[slot] = len(PROMPT)
        states.write(slot, tokens)
        assert processor.add_request(slot, sampling(8, thinking_budget=2))
    processor.apply_staged_writes()
    logits = torch.randn(2, VOCAB)
    found = processor.apply(
        logits.clone(), context_of(states, [(slot, tokens, []) for slot, tokens in texts.items()])
    )
    assert found[0].isfinite().nonzero().tolist() == [[CLOSE]]
    assert torch.equal(found[1], logits[1])


@pytest.mark.parametrize("knobs", [{"effort": "max"}, {"thinking_budget": 4, "min_thinking_tokens": 2}])
def test_other_knobs_are_refused(knobs: dict[str, Any]) -> None:
    with pytest.raises(BudgetError, match="expected thinking_budget alone"):
        BudgetForcing.validate_params(sampling(16, **knobs))
    BudgetForcing.validate_params(sampling(16, thinking_budget=4))
    BudgetForcing.validate_params(sampling(16))
