"""Rows of which is known that nothing ends there, against the same rows when all is asked of them at every step."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetctl.closing import Boundaries
from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.guided_step import CERTAIN, MOST_GAIN
from budgetctl.integrations.vllm.processor import BudgetProcessor
from budgetctl.protect import Spans
from tests.budgetctl.integrations.vllm.fakes import Update, processor_for, sampling
from tests.conformance.strategies import EOS, LINE, PROFILE, USER, VOCAB, A, B, delimiters, prompts

FENCE, HALF, THIRD = 4, 14, 15
ROWS, STEPS = 5, 50

KNOBS: list[dict[str, Any]] = [
    {"thinking_budget": 12},
    {"thinking_budget": 30},
    {"thinking_budget": 25},
    {"thinking_budget": 9, "min_thinking_tokens": 5},
    {"thinking_target": 14},
    {"effort": "high", "answer_reserve": 3},
    {"effort": 0.7},
    {"min_thinking_tokens": 7},
    {"answer_reserve": 5},
    {},
]


@pytest.fixture(scope="module")
def bounds(boundaries: Boundaries) -> Boundaries:
    """Line and sentence ends, and tokens that open fences or lack bytes."""
    fence = torch.zeros(VOCAB, dtype=torch.bool)
    fence[FENCE] = True
    missing = torch.zeros(VOCAB, dtype=torch.int64)
    missing[HALF], missing[THIRD] = 1, 2
    spans = Spans(fence, (LINE, FENCE), missing)
    return Boundaries(boundaries.line, boundaries.sentence, boundaries.digit, spans)


def asks_all(processor: BudgetProcessor) -> BudgetProcessor:
    """The processor, which reads every row at every step."""
    processor._rows.watch = None
    processor._controller._is_quiet = lambda *_: False  # type: ignore[method-assign]
    return processor


@settings(PROFILE, max_examples=25)
@given(
    data=st.data(), d=delimiters(), seed=st.integers(0, 10_000), temperature=st.sampled_from([0.0, 0.6, 1.0])
)
def test_as_when_all_is_asked(
    data: st.DataObject,
    d: ThinkingDelimiters,
    seed: int,
    temperature: float,
    forecast: Any,
    bounds: Boundaries,
) -> None:
    """Any markers, rows that end and are followed by others, tokens that are taken back, two tokens at once."""
    rng, generator = Random(seed), torch.Generator().manual_seed(seed)
    model = forecast if seed % 4 else None
    quiet, asked = processor_for(d, bounds, model), asks_all(processor_for(d, bounds, model))
    texts = [data.draw(prompts(d)) or [USER] for _ in range(3)]
    outputs: list[list[int]] = []

    def added(row: int) -> tuple[int, Any, list[int], list[int]]:
        knobs = (
            rng.choice(KNOBS) if model is not None else rng.choice([k for k in KNOBS if "effort" not in k])
        )
        params = sampling(rng.choice((None, 40)), temperature, **knobs)
        return row, params, rng.choice(texts), outputs[row]

    outputs = [[] for _ in range(ROWS)]
    update: Update | None = Update(ROWS, added=[added(row) for row in range(ROWS)])
    for _ in range(STEPS):
        quiet.update_state(update)
        asked.update_state(update)
        logits = 2 * torch.randn(ROWS, VOCAB, dtype=torch.float64, generator=generator)
        if rng.random() < 0.2:  # other processors have left little
            banned = torch.rand(ROWS, VOCAB, generator=generator) < rng.choice((0.5, 0.95))
            logits = logits.masked_fill(banned, -torch.inf)
            logits[:, A] = 0.0
        found, expected = quiet.apply(logits.clone()), asked.apply(logits.clone())
        assert torch.equal(found.isneginf(), expected.isneginf())
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        update = None
        for row in range(ROWS):
            chance = rng.random()
            if chance < 0.02:
                outputs[row] = []
                update = update or Update(ROWS)
                update.added.append(added(row))
            elif chance < 0.04 and outputs[row]:
                del outputs[row][-1]
            elif chance < 0.05:
                outputs[row] += [A, B]
            elif chance < 0.9:
                words = [
                    token for token in (A, B, LINE, LINE, 3, FENCE, HALF) if expected[row, token] > -torch.inf
                ]
                outputs[row].append(rng.choice(words or [int(expected[row].argmax())]))
            elif chance < 0.98:
                outputs[row].append(int(torch.multinomial(expected[row].softmax(0), 1, generator=generator)))


@pytest.mark.parametrize("name", ["opened by the template", "spelled, template"])
def test_a_long_thought_is_read_at_its_ends_alone(
    name: str, markers: Any, bounds: Boundaries, forecast: Any
) -> None:
    d = markers[name]
    processor = processor_for(d, bounds, forecast)
    reads: list[int] = []
    reader = processor._rows._reader
    read = reader.read
    reader.read = lambda *given: reads.append(len(outputs)) or read(*given)  # type: ignore[assignment, func-returns-value]
    prompt, outputs = [USER, *d.turn_start_ids, *d.open_ids, *d.lead_ids], list[int]()
    params = sampling(200, 1.0, thinking_budget=100)
    processor.update_state(Update(1, added=[(0, params, prompt, outputs)]))
    generator = torch.Generator().manual_seed(0)
    for step in range(100 + len(d.forced_end_ids)):
        scores = processor.apply(torch.randn(1, VOCAB, dtype=torch.float64, generator=generator))
        forced = step >= 100
        assert (scores.isneginf().sum() == VOCAB - 1) == forced
        outputs.append(int(scores.argmax()) if forced else A)
        processor.update_state(None)
    assert tuple(outputs[100:]) == d.forced_end_ids
    assert reads == [0, *range(101, 100 + len(d.forced_end_ids))]


def test_a_certain_token_is_left_alone(markers: Any, bounds: Boundaries, forecast: Any) -> None:
    """A row whose likeliest token is far above the others keeps its logits, a row beside it does not."""
    d = markers["opened by the template"]
    prompt = [USER, *d.turn_start_ids, *d.open_ids, *d.lead_ids]
    processor = processor_for(d, bounds, forecast)
    outputs: list[list[int]] = [[], []]
    params = sampling(300, 1.0, thinking_budget=40)
    processor.update_state(Update(2, added=[(row, params, prompt, outputs[row]) for row in range(2)]))
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, VOCAB, dtype=torch.float64, generator=generator)
    processor.apply(logits.clone())
    for kept in outputs:
        kept.append(A)
    logits[0, B] = logits[0].max() + CERTAIN + (MOST_GAIN + 1) * processor._controller.strength
    scores = processor.apply(logits.clone())
    others = [token for token in range(VOCAB) if token not in (EOS, 17, *d.forced_end_ids)]
    assert torch.equal(scores[0, others], logits[0, others])
    assert not torch.equal(scores[1, others], logits[1, others])


def test_an_answer_after_a_thought_of_unknown_length_is_asked_at_every_step(
    markers: Any, bounds: Boundaries, forecast: Any
) -> None:
    """Two tokens that came at once: no step saw the first of the thought, when its length is predicted."""
    d = markers["opened by the model"]
    (close,), (opened,) = d.forced_end_ids, d.open_ids
    processors = processor_for(d, bounds, forecast), asks_all(processor_for(d, bounds, forecast))
    outputs = [opened, A]
    params = sampling(200, 1.0, effort=0.7)
    generator = torch.Generator().manual_seed(0)
    update: Update | None = Update(1, added=[(0, params, [USER, *d.turn_start_ids], outputs)])
    bans = []
    for step in range(60):
        logits = 3 * torch.randn(1, VOCAB, dtype=torch.float64, generator=generator)
        scores = []
        for processor in processors:
            processor.update_state(update)
            scores.append(processor.apply(logits.clone()))
        torch.testing.assert_close(*scores, rtol=1e-6, atol=1e-6)
        update = None
        outputs.append(close if step == 12 else A)
        bans.append(bool(scores[0][0, opened].isneginf()))
    # A forecast that says more or less leaves room for a thought, or not.
    assert set(bans[13:]) == {False, True}
