"""The first runner's batch: whoever comes, goes or moves, a request has the scores that it has alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetctl.controller import BudgetController
from budgetctl.delimiters import ThinkingDelimiters
from tests.budgetctl.integrations.vllm.fakes import CONTEXT, Direction, Update, processor_for, sampling
from tests.conformance.strategies import PROFILE, USER, delimiters, limits, logits_of, prompts

REQUESTS, STEPS, TOGETHER = 14, 30, 5


@dataclass(eq=False)
class Request:
    """A request with the controller that it has alone; ``outputs`` is the list that the engine shares."""

    prompt: list[int]
    params: Any
    alone: BudgetController
    lasts: int
    outputs: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return [*self.prompt, *self.outputs]


@dataclass
class Batch:
    """A persistent batch, by row, and the update that tells what was done with it."""

    rows: list[Request | None] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    added: list[tuple[int, Any, list[int] | None, list[int]]] = field(default_factory=list)
    moved: list[tuple[int, int, Direction]] = field(default_factory=list)

    def remove(self, request: Request) -> None:
        row = self.rows.index(request)
        self.rows[row] = None
        self.removed.append(row)

    def add(self, request: Request) -> None:
        """Into a row that was freed, of which then no removal is told, or a new one."""
        row = min(self.removed, default=len(self.rows))
        if row == len(self.rows):
            self.rows.append(None)
        else:
            self.removed.remove(row)
        self.rows[row] = request
        self.added.append((row, request.params, request.prompt, request.outputs))

    def condense(self, rng: Random) -> None:
        """Fill the holes from behind, then let some change places."""
        for hole in sorted(self.removed):
            last = max((row for row, kept in enumerate(self.rows) if kept is not None), default=-1)
            if hole < last:
                self.rows[hole], self.rows[last] = self.rows[last], None
                self.removed.remove(hole)
                self.moved.append((last, hole, Direction.UNIDIRECTIONAL))
        while self.rows and self.rows[-1] is None:
            self.rows.pop()
        for _ in range(rng.randrange(2) if len(self.rows) > 1 else 0):
            one, other = rng.sample(range(len(self.rows)), 2)
            self.rows[one], self.rows[other] = self.rows[other], self.rows[one]
            self.moved.append((one, other, Direction.SWAP))

    def update(self) -> Update | None:
        told = Update(len(self.rows), sorted(self.removed, reverse=True), self.added, self.moved)
        anything = any((self.removed, self.added, self.moved))
        self.removed, self.added, self.moved = [], [], []
        return told if anything else None


@settings(PROFILE, max_examples=15)
@given(data=st.data(), d=delimiters(), seed=st.integers(0, 10_000), steer=st.booleans())
def test_a_request_has_the_scores_that_it_has_alone(
    data: st.DataObject, d: ThinkingDelimiters, seed: int, steer: bool, forecast: Any, boundaries: Any
) -> None:
    """Requests are left out of steps, sent back, sampled and thrown away; their tokens are known late."""
    model = forecast if steer else None
    processor = processor_for(d, boundaries, model)
    rng = Random(seed)
    kinds = [data.draw(limits(d, forecast=steer)) for _ in range(4)]
    earlier = rng.choices(range(18), k=40)  # of which not all is kept, markers and headers in it
    texts = [rng.choice(([], earlier)) + (data.draw(prompts(d)) or [USER]) for _ in range(4)]
    generator = torch.Generator().manual_seed(seed)
    batch, away, started = Batch(), [], 0
    for _ in range(STEPS):
        for request in [r for r in batch.rows if r is not None]:
            if request.lasts <= 0:
                batch.remove(request)
            elif rng.random() < 0.1:  # not scheduled, or preempted
                batch.remove(request)
                if rng.random() < 0.5:
                    request.outputs = list(request.outputs)
                away.append(request)
        while started < REQUESTS and len(away) + len([r for r in batch.rows if r]) < TOGETHER:
            asked, prompt = rng.choice(kinds), rng.choice(texts)
            length = CONTEXT - len(prompt) if asked["max_new_tokens"] is None else asked["max_new_tokens"]
            alone = BudgetController(
                d,
                forecast=model,
                boundaries=boundaries,
                prompt_length=len(prompt),
                **{**asked, "max_new_tokens": length},
            )
            knobs = {name: value for name, value in asked.items() if name != "max_new_tokens"}
            params = sampling(asked["max_new_tokens"], **knobs)
            away.append(Request(list(prompt), params, alone, rng.randrange(1, 12)))
            started += 1
        for request in [r for r in away if rng.random() < 0.7]:
            away.remove(request)
            batch.add(request)
        batch.condense(rng)
        rows = [r for r in batch.rows if r is not None]
        hidden = {id(r): r.outputs[-1] for r in rows if r.outputs and rng.random() < 0.5}
        for request in rows:
            if id(request) in hidden:
                request.outputs[-1] = -1
        processor.update_state(batch.update())
        for request in rows:
            if id(request) in hidden:
                request.outputs[-1] = hidden[id(request)]
        if not rows:
            continue
        partial = {id(r) for r in rows if not r.outputs and rng.random() < 0.2}  # a chunk of a prompt
        logits = torch.cat(
            [logits_of(torch.tensor([r.tokens[:1] if id(r) in partial else r.tokens]), seed, d) for r in rows]
        )
        scores = processor.apply(logits.clone())
        chosen = torch.multinomial(scores.softmax(1), 1, generator=generator)[:, 0].tolist()
        for row, request in enumerate(rows):
            if id(request) in partial:
                continue
            own = request.alone(torch.tensor([request.tokens]), logits[row : row + 1])[0]
            assert torch.equal(scores[row].isneginf(), own.isneginf())
            torch.testing.assert_close(scores[row], own, rtol=1e-6, atol=1e-6)
            if request.alone.idle:
                assert torch.equal(scores[row], logits[row])
            request.outputs.append(chosen[row])
            request.lasts = 0 if chosen[row] in d.eos_ids else request.lasts - 1


def test_a_row_that_is_taken_over_without_a_word_has_no_limit(markers: Any, boundaries: Any) -> None:
    """Both by a request that is added, and by one that is moved there."""
    d = markers["opened by the template"]
    prompt = [USER, *d.turn_start_ids, *d.open_ids, *d.lead_ids]
    processor = processor_for(d, boundaries, None)
    logits = torch.zeros(3, 18)
    cut, free = sampling(20, thinking_budget=0), sampling(20)
    processor.update_state(Update(3, added=[(row, cut, prompt, []) for row in range(3)]))
    assert processor.apply(logits.clone()).isneginf().any(1).tolist() == [True, True, True]
    processor.update_state(Update(3, added=[(1, free, prompt, [])]))
    assert processor.apply(logits.clone()).isneginf().any(1).tolist() == [True, False, True]
    processor.update_state(
        Update(2, moved=[(1, 0, Direction.UNIDIRECTIONAL), (2, 1, Direction.UNIDIRECTIONAL)])
    )
    assert processor.apply(logits[:2].clone()).isneginf().any(1).tolist() == [False, True]
    processor.update_state(Update(1, removed=[1]))
    assert torch.equal(processor.apply(logits[:1]), logits[:1])


def test_a_prediction_is_of_the_whole_conversation(markers: Any, boundaries: Any, forecast: Any) -> None:
    """Two requests with the same last turn, the second sent back inside a thought that the prompt has begun."""
    d = markers["opened by the template"]
    turn = [USER, *d.turn_start_ids, *d.open_ids, *d.lead_ids]
    histories = ([5] * 20 + [6] * 20, [6] * 40)
    processor = processor_for(d, boundaries, forecast)
    params = sampling(400, effort=0.5)
    processor.update_state(Update(1, added=[(0, params, histories[0] + turn, [])]))
    processor.apply(torch.randn(1, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))
    logits = torch.randn(1, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    fresh = processor_for(d, boundaries, forecast)
    for kept in (processor, fresh):
        kept.update_state(Update(1, added=[(0, params, histories[1] + turn + [5, 6], [])]))
    assert torch.equal(processor.apply(logits.clone()), fresh.apply(logits.clone()))


def test_tokens_that_are_taken_back_are_read_again(markers: Any, boundaries: Any) -> None:
    d = markers["opened by the template"]
    prompt = [USER, *d.turn_start_ids, *d.open_ids, *d.lead_ids]
    processor = processor_for(d, boundaries, None)
    outputs = [5, 5, 5]
    processor.update_state(Update(1, added=[(0, sampling(20, thinking_budget=3), prompt, outputs)]))
    assert processor.apply(torch.zeros(1, 18)).isneginf().sum() == 17
    outputs[1:] = [*d.forced_end_ids, 6]  # as many as before
    assert processor.apply(torch.zeros(1, 18)).isneginf().sum() < 17
    del outputs[0:]
    outputs += [5]
    assert processor.apply(torch.zeros(1, 18)).isneginf().sum() == 1  # the end of sequence


def test_placeholders_that_are_never_filled_in_are_an_error(markers: Any, boundaries: Any) -> None:
    d = markers["opened by the template"]
    prompt = [USER, *d.turn_start_ids, *d.open_ids, *d.lead_ids]
    processor = processor_for(d, boundaries, None)
    processor.update_state(Update(1, added=[(0, sampling(20, thinking_budget=3), prompt, [5, -1])]))
    with pytest.raises(RuntimeError, match="--logits-processors"):
        processor.apply(torch.zeros(1, 18))


def test_a_prompt_of_embeddings_counts_as_opened_by_the_template(markers: Any, boundaries: Any) -> None:
    d = markers["opened by the template"]
    processor = processor_for(d, boundaries, None)
    processor.update_state(Update(1, added=[(0, sampling(20, thinking_budget=1), None, [5])]))
    assert processor.apply(torch.zeros(1, 18)).argmax(1).tolist() == [d.forced_end_ids[0]]


def test_the_context_leaves_room_for_the_answer(markers: Any, boundaries: Any) -> None:
    """Where ``max_tokens`` is more than the context holds."""
    d = markers["opened by the template"]
    prompt = [USER, *d.turn_start_ids, *d.open_ids, *d.lead_ids]
    filler = [5] * (4096 - 20 - len(prompt))
    processor = processor_for(d, boundaries, None)
    params = sampling(1000, effort="max", answer_reserve=8)
    processor.update_state(Update(1, added=[(0, params, filler + prompt, [5] * 11)]))
    assert processor.apply(torch.zeros(1, 18)).isneginf().sum() == 17
