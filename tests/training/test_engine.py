"""Rollouts by an engine: what it is asked for, what is made of its replies, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetctl.delimiters import ThinkingDelimiters, Tokens
from budgetctl.errors import TrainingError
from budgetctl.training.brpo import BRPO
from budgetctl.training.elastic import Elastic
from budgetctl.training.engine import Engine
from budgetctl.training.engine_rollouts import forced_by_engine
from budgetctl.training.rollouts import budget_forced, truncated_summaries
from tests.training.test_rollouts import CLOSE, EOS, OPEN, PHRASE, SINGLE, A, B, C, Script

SPELLED = replace(SINGLE, natural_end_ids=((7, 8),), forced_end_ids=(7, 8))


def one_call(text: Tokens, budget: int, most: int, delimiters: ThinkingDelimiters) -> Tokens:
    """What an engine with budget forcing writes whose model wants the tokens of ``text``: thought, close and answer."""
    row: Tokens = ()
    closed, wanted = False, iter(text)
    while len(row) < most:
        if not closed and len(row) == budget:
            row = (*row, *delimiters.forced_end_ids)[:most]
        else:
            row = (*row, next(wanted))
            if row[-1] == EOS:
                break
        closed = closed or any(row[-len(end) :] == end for end in delimiters.end_variants)
    return row


@given(
    text=st.lists(st.sampled_from([A, B, C, CLOSE, EOS]), max_size=16),
    budget=st.integers(1, 10),
    answer=st.integers(1, 5),
    delimiters=st.sampled_from([SINGLE, PHRASE]),
)
def test_one_call_is_what_two_are(
    text: list[int], budget: int, answer: int, delimiters: ThinkingDelimiters
) -> None:
    """Thought and answer are the tokens of one text; so is what the sampler of two calls is given."""
    whole = (*text, *[A] * 20)
    completion = one_call(whole, budget, budget + len(delimiters.forced_end_ids) + answer, delimiters)
    got = forced_by_engine((OPEN,), completion, delimiters, (EOS,), budget, answer)
    thought: Tokens = ()
    for token in whole[:budget]:
        thought = (*thought, token)
        if token in (CLOSE, EOS):
            break
    script = Script({5: whole, ~5: whole[len(thought) :]})
    expected = budget_forced(script, delimiters, [(OPEN,)], [5], [budget], answer)[0]
    if delimiters is SINGLE or got.sampled == expected.sampled:
        assert got == expected
    else:  # the thought ended with the phrase's beginning, which was gone on with
        assert thought[-1] == C
        assert sum(got.sampled[: got.completion_ids.index(CLOSE)]) == budget


def test_a_close_that_the_model_had_begun_is_completed() -> None:
    got = forced_by_engine((OPEN,), (A, A, 7, 8, B, EOS), SPELLED, (EOS,), 3, 4)
    assert got.sampled == (1, 1, 1, 0, 1, 1)
    assert got.segments == (0, 0, 0, 0, 1, 1)
    assert (got.close, got.thinking_tokens, got.answer_tokens) == ("forced", 2, 2)


def test_the_answer_is_cut_with_its_log_probabilities() -> None:
    logprobs = (-1.0, -2.0, -3.0, None, -5.0)
    got = forced_by_engine((OPEN,), (A, CLOSE, B, B, B), SINGLE, (EOS,), 4, 2, logprobs)
    assert got.completion_ids == (A, CLOSE, B, B)
    assert got.logprobs == (-1.0, -2.0, -3.0, None)


@pytest.mark.parametrize(
    ("completion", "message"),
    [
        ((A, A, A, CLOSE, EOS), "a thought of 3 tokens under a budget of 2"),
        ((A, A, A, EOS), "BudgetForcingLogitsProcessor"),
        ((A,), "raise vllm_max_model_length"),
        ((), "raise vllm_max_model_length"),
    ],
)
def test_an_engine_that_does_not_keep_the_budget_is_an_error(completion: Tokens, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        forced_by_engine((OPEN,), completion, SINGLE, (EOS,), 2, 4)


@pytest.mark.parametrize("written", [(CLOSE,), (B, CLOSE)])
def test_another_close_than_the_trainers_is_an_error(written: Tokens) -> None:
    """A server knows the close of its tokenizer, without the phrase of the trainer."""
    with pytest.raises(TrainingError, match="not this trainer's close"):
        forced_by_engine((OPEN,), (A, A, *written, EOS), PHRASE, (EOS,), 2, 4)


class FakeVLLM:
    """TRL's ``VLLMGeneration`` and ``_generate_single_turn``: keeps what it is asked, replies what it is told."""

    def __init__(self, replies: Sequence[Sequence[Tokens]], mode: str = "colocate", **kwargs: Any) -> None:
        self.replies = iter(replies)
        self.generation = SimpleNamespace(mode=mode, generation_kwargs=kwargs)
        self.asked: list[tuple[list[list[int]], int, dict[str, Any]]] = []

    def __call__(self, prompts: Any, images: None, fields: dict[str, Any], repeats: int) -> Any:
        self.asked.append((prompts, repeats, dict(self.generation.generation_kwargs)))
        completions = [list(row) for row in next(self.replies)]
        return completions, [[-float(token) for token in row] for row in completions]

    @property
    def engine(self) -> Engine:
        return Engine(self, self.generation, (EOS,))


@pytest.mark.parametrize(("mode", "name"), [("colocate", "extra_args"), ("server", "vllm_xargs")])
def test_elastic_is_one_call_with_a_budget(mode: str, name: str) -> None:
    own = {"seed": 5, name: {"other": 1}}
    fake = FakeVLLM([[(A, CLOSE, B, EOS), (A, A, CLOSE, B, B, B)]], mode, **own)
    rows = Elastic(SINGLE, 8, 2, 2).engine_rollouts(fake.engine, [(A,), (A,)], [0, 1], 2)
    assert fake.asked == [
        (
            [[A, OPEN], [A, OPEN]],
            2,
            {"seed": 5, "max_tokens": 5, name: {"other": 1, "thinking_budget": 2}},
        )
    ]
    assert fake.generation.generation_kwargs == own
    assert [r.close for r in rows] == ["natural", "forced"]
    assert rows[1].completion_ids == (A, A, CLOSE, B, B)
    assert rows[1].logprobs == (-A, -A, -CLOSE, -B, -B)


def test_brpo_is_a_call_for_thoughts_and_one_for_answers() -> None:
    """The rollouts are those of the sampler that writes the same; log-probabilities stand at what was sampled."""
    thoughts = [(A, B, A, B), (A, CLOSE)]
    answers = [(B, EOS), (B, B, B), (C, EOS), (C, C, EOS)]
    fake = FakeVLLM([thoughts, answers], stop_token_ids=[9])
    method = BRPO(SINGLE, 16, (2, 4), 1, 2)
    rows = method.engine_rollouts(fake.engine, [(A,)] * 4, list(range(4)), 4)
    first, second = fake.asked
    assert first == ([[A, OPEN]] * 2, 1, {"max_tokens": 4, "stop_token_ids": [9, CLOSE]})
    starts = [[A, OPEN, A, B, CLOSE], [A, OPEN, A, B, A, B, CLOSE], *[[A, OPEN, A, CLOSE]] * 2]
    assert second == (starts, 1, {"max_tokens": 2, "stop_token_ids": [9]})
    script = Script({0: thoughts[0], 2: thoughts[1], **{~i: reply for i, reply in enumerate(answers)}})
    expected = truncated_summaries(script, SINGLE, [(A, OPEN)] * 2, list(range(4)), (2, 4), 1, 2)
    assert [replace(row, logprobs=None) for row in rows] == expected
    for row in rows:
        assert row.logprobs is not None
        drawn = [-float(token) * mine for token, mine in zip(row.completion_ids, row.sampled, strict=True)]
        assert list(row.logprobs) == drawn


def test_an_answer_that_there_is_none_of_is_drawn_and_left_out() -> None:
    """All processes make the same calls, whatever their thoughts are."""
    fake = FakeVLLM([[(A, EOS)], [(B, B)] * 2])
    rows = BRPO(SINGLE, 16, (1, 4), 1, 2).engine_rollouts(fake.engine, [(A,)] * 2, [0, 1], 2)
    assert [r.completion_ids for r in rows] == [(A, CLOSE, B, B), (A, EOS)]
    assert rows[1].logprobs == (-A, -EOS)


def test_a_close_of_several_tokens_is_cut_here() -> None:
    fake = FakeVLLM([[(A, 7, 8, B, B)]])
    assert fake.engine.extend([(OPEN,)], [0], [5], [(7, 8)]) == [(A, 7, 8)]
    assert fake.asked[0][2] == {"max_tokens": 5}
