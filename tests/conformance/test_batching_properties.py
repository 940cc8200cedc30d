"""Continuous batching without a model: whoever shares a step, a request has the scores that it has alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig
from transformers.generation.continuous_batching.requests import RequestState, RequestStatus

from budgetctl.controller import BudgetController
from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.integrations.batching_support import PLAN_KNOBS
from budgetctl.integrations.continuous_batching import BatchedBudgets
from budgetctl.telemetry import report_sequences
from tests.conformance.strategies import PAD, PROFILE, USER, delimiters, limits, logits_of, prompts

#: More than the table has slots at first, so that finished ones are used again.
REQUESTS, STEPS, TOGETHER = 20, 32, 5


@dataclass
class Request:
    """A request as the device sees it, ``tokens``, and as the host does: a token behind at times."""

    name: str
    prompt: list[int]
    asked: dict[str, Any]
    alone: BudgetController
    lasts: int
    state: RequestState = field(init=False)
    tokens: list[int] = field(init=False)

    def __post_init__(self) -> None:
        kwargs = {name: value for name, value in self.asked.items() if name != "max_new_tokens"}
        self.tokens = list(self.prompt)
        self.state = RequestState(
            self.name,
            list(self.prompt),
            max_new_tokens=self.asked["max_new_tokens"],
            logit_processor_kwargs={name: value for name, value in kwargs.items() if value is not None},
        )
        self.state.status = RequestStatus.DECODING

    def tell_host(self, *, behind: bool) -> None:
        """The host learns what was generated, but for the last token where it is ``behind``."""
        known = len(self.tokens) - behind * (len(self.tokens) > len(self.prompt))
        known = max(known, len(self.state.initial_tokens) + len(self.state.generated_tokens))
        self.state.generated_tokens = self.tokens[len(self.state.initial_tokens) : known]

    def send_back(self, *, forgotten: bool) -> None:
        """To the queue, for want of memory: what the host does not know is lost; its cache may have been kept."""
        self.tokens = [*self.state.initial_tokens, *self.state.generated_tokens]
        if forgotten:
            before, self.state = self.state, self.state.create_equivalent_initial_request()
            before._status = RequestStatus.FINISHED
            self.state.status = RequestStatus.DECODING


@settings(PROFILE, max_examples=15)
@given(data=st.data(), d=delimiters(), seed=st.integers(0, 10_000), steer=st.booleans())
def test_a_request_has_the_scores_that_it_has_alone(
    data: st.DataObject, d: ThinkingDelimiters, seed: int, steer: bool, forecast: Any, boundaries: Any
) -> None:
    """Requests come and go, change places, miss steps, are sent back and prefilled again."""
    assume(not d.lead_ids)  # sent back inside a lead, a request keeps the forecast made after it

    def controller_for(config: Any, prompt_length: int, rows: int, **knobs: Any) -> BudgetController:
        model = forecast if steer else None
        for name in PLAN_KNOBS:
            assert not any(knobs.pop(name, None) or ())
        return BudgetController(
            d, forecast=model, boundaries=boundaries, prompt_length=prompt_length, **knobs
        )

    config = GenerationConfig(do_sample=True, pad_token_id=PAD, max_new_tokens=20)
    installation: Any = SimpleNamespace(
        model=None, forecast=forecast if steer else None, controller_for=controller_for
    )
    budgets = BatchedBudgets(installation, config)
    rng = data.draw(st.randoms(use_true_random=False))
    kinds = [data.draw(limits(d, forecast=steer)) for _ in range(4)]
    texts = [data.draw(prompts(d)) or [USER] for _ in range(4)]
    generator = torch.Generator().manual_seed(seed)
    waiting = list(range(REQUESTS))
    running: list[Request] = []
    finished: list[Request] = []
    for _ in range(STEPS):
        while waiting and len(running) < TOGETHER:
            number = waiting.pop(0)
            asked, prompt = rng.choice(kinds), rng.choice(texts)
            alone = controller_for(config, len(prompt), 1, **asked)
            running.append(Request(f"r{number}", prompt, asked, alone, rng.randrange(1, 12)))
        if not running:
            break
        for request in running:
            if rng.random() < 0.1:
                request.send_back(forgotten=rng.random() < 0.5)
        step = rng.sample(running, rng.randrange(1, len(running) + 1))
        logits = torch.cat([logits_of(torch.tensor([r.tokens]), seed, d) for r in step])
        for request in step:
            request.state.position_offset = len(request.tokens)
        budgets.prepare_tensor_args([SimpleNamespace(state=request.state) for request in step])
        budgets.inputs(torch.tensor([request.tokens[-1] for request in step]), logits)
        scores = budgets(logits, torch.zeros(len(step), dtype=torch.int32))
        chosen = torch.multinomial(scores.softmax(1), 1, generator=generator)[:, 0].tolist()
        for row, request in enumerate(step):
            own = request.alone(torch.tensor([request.tokens]), logits[row : row + 1])[0]
            assert torch.equal(scores[row].isneginf(), own.isneginf())
            torch.testing.assert_close(scores[row], own, rtol=1e-9, atol=1e-9)
            request.tokens.append(chosen[row])
            request.lasts -= 1
            over = request.lasts <= 0 or chosen[row] in d.eos_ids
            request.tell_host(behind=not over and rng.random() < 0.5)
            if over:
                request.state.status = RequestStatus.FINISHED
                running.remove(request)
                finished.append(request)
    for request in finished:
        assert_same_report(budgets, request)


def assert_same_report(budgets: BatchedBudgets, request: Request) -> None:
    width = len(request.prompt)
    found = budgets.report(request.name, request.prompt, request.tokens[width:])
    own = report_sequences(request.alone, torch.tensor([request.tokens]), width)[0].as_dict()
    assert found.as_dict() == own | {"predicted_tokens": pytest.approx(own["predicted_tokens"])}
