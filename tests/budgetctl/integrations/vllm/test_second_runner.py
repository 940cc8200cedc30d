"""The second runner's slots, by its interface of release 0.32: a row has the scores that its request has alone.

That runner needs a GPU with Triton. What is tested is what the interface says: slots that are used again, rows in any
order, drafts that are in the fed ids alone, prompts in chunks, requests that come back into another slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetctl.controller import BudgetController
from budgetctl.delimiters import ThinkingDelimiters
from tests.budgetctl.integrations.vllm.fakes import CONTEXT, States, context_of, processor_for, sampling
from tests.conformance.strategies import PROFILE, USER, delimiters, limits, logits_of, prompts

REQUESTS, STEPS, SLOTS = 14, 24, 6


@dataclass(eq=False)
class Request:
    """A request in a slot, with the controller that it has alone."""

    tokens: list[int]
    params: Any
    alone: BudgetController
    lasts: int
    slot: int = -1


@settings(PROFILE, max_examples=15)
@given(data=st.data(), d=delimiters(), seed=st.integers(0, 10_000), steer=st.booleans())
def test_a_request_has_the_scores_that_it_has_alone(
    data: st.DataObject, d: ThinkingDelimiters, seed: int, steer: bool, forecast: Any, boundaries: Any
) -> None:
    model = forecast if steer else None
    states = States(SLOTS, 256)
    processor = processor_for(d, boundaries, model, states)
    rng = Random(seed)
    kinds = [data.draw(limits(d, forecast=steer)) for _ in range(4)]
    texts = [data.draw(prompts(d)) or [USER] for _ in range(4)]
    generator = torch.Generator().manual_seed(seed)
    free, started = list(range(SLOTS)), 0
    running: list[Request] = []
    away: list[Request] = []
    for _ in range(STEPS):
        for request in list(running):
            if request.lasts <= 0 or rng.random() < 0.1:
                running.remove(request)
                free.insert(rng.randrange(len(free) + 1), request.slot)
                if request.lasts > 0:
                    away.append(request)
        while started < REQUESTS and len(away) + len(running) < SLOTS:
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
            request = Request(
                list(prompt), sampling(asked["max_new_tokens"], **knobs), alone, rng.randrange(1, 12)
            )
            away.append(request)
            started += 1
        for request in [r for r in away if rng.random() < 0.7]:
            away.remove(request)
            request.slot = free.pop()
            states.prompt_len.np[request.slot] = request.alone.prompt_length
            states.write(request.slot, request.tokens)
            assert processor.add_request(request.slot, request.params) is not request.alone.idle
            running.append(request)
        processor.apply_staged_writes()
        if not running:
            continue
        step = rng.sample(running, len(running))
        drafted = rng.random() < 0.4
        drafts = [[rng.choice([5, 6, *d.forced_end_ids]) for _ in range(3 * drafted)] for _ in step]
        prefixes = [
            r.tokens + ids[:size] for r, ids in zip(step, drafts, strict=True) for size in range(len(ids) + 1)
        ]
        logits = torch.cat([logits_of(torch.tensor([prefix]), seed, d) for prefix in prefixes])
        context = context_of(states, [(r.slot, r.tokens, ids) for r, ids in zip(step, drafts, strict=True)])
        scores = processor.apply(logits.clone(), context)
        chosen = torch.multinomial(scores.softmax(1), 1, generator=generator)[:, 0].tolist()
        at = 0
        for request, ids in zip(step, drafts, strict=True):
            for size in range(len(ids) + 1):
                own = request.alone(torch.tensor([request.tokens + ids[:size]]), logits[at : at + 1])[0]
                torch.testing.assert_close(scores[at], own, rtol=1e-6, atol=1e-6)
                if request.alone.idle:
                    assert torch.equal(scores[at], logits[at])
                at += 1
            kept = rng.randrange(len(ids) + 1)  # drafts that are accepted
            new = [*ids[:kept], chosen[at - len(ids) - 1 + kept]]
            ended = next((n for n, token in enumerate(new) if token in d.eos_ids), None)
            request.tokens += new if ended is None else new[: ended + 1]
            request.lasts = 0 if ended is not None else request.lasts - 1
            states.write(request.slot, request.tokens)


def test_a_chunk_of_a_prompt_is_read_up_to_its_row(markers: Any, boundaries: Any) -> None:
    """Tokens that stand behind it, of the prompt or of the slot's last request, do not count."""
    d = markers["opened by the template"]
    prompt = [USER, *d.turn_start_ids, *d.open_ids, *d.lead_ids]
    states = States(2, 64)
    processor = processor_for(d, boundaries, None, states)
    states.prompt_len.np[1] = len(prompt)
    states.write(1, prompt)
    processor.add_request(1, sampling(20, thinking_budget=0))
    processor.apply_staged_writes()
    logits = torch.zeros(1, 18)
    assert not processor.apply(logits.clone(), context_of(states, [(1, prompt[:2], [])])).isneginf().any()
    assert processor.apply(logits.clone(), context_of(states, [(1, prompt, [])])).isneginf().sum() == 17
