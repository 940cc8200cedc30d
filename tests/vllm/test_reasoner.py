"""The embedded reasoner in a real vLLM engine: limits, batches of every mix, and the same numbers as in transformers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: run `make test-vllm`, which has an environment of its own")

from budgetctl.delimiters import find_delimiters
from budgetctl.integrations.transformers import Installation, install
from budgetctl.predictors.hidden_state import HookHiddenState
from budgetctl.reasoner.load import PREDICTOR, WEIGHTS, load_reasoner
from budgetctl.reasoner.tasks import take_questions
from tests.vllm.engine import processor_of, start, write

CLOSE = 4
QUESTIONS = 24
#: Requests that the small engine has sent back to the queue.
SENT_BACK: list[str] = []


@cache
def installed() -> Installation:
    """The same weights in transformers, in float32."""
    return install(*load_reasoner(), PREDICTOR)


@cache
def prompts() -> list[list[int]]:
    tokenizer = installed().tokenizer
    asked = take_questions("test", QUESTIONS, min_level=7)
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question.prompt}], add_generation_prompt=True, return_dict=False
        )
        for question in asked
    ]


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """Chunks of prompts share steps with other rows, and the cache is too small for all of them, so that requests are
    sent back and prefilled again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BUDGETCTL_PREDICTOR", str(PREDICTOR))
        small = start(
            str(WEIGHTS),
            max_model_len=512,
            max_num_seqs=12,
            max_num_batched_tokens=32,
            block_size=32,
            num_gpu_blocks_override=20,
        )
        scheduler = small.llm_engine.engine_core.engine_core.scheduler
        preempt = scheduler._preempt_request

        def note(request: Any, *others: Any, **named: Any) -> None:
            SENT_BACK.append(request.request_id)
            preempt(request, *others, **named)

        scheduler._preempt_request = note
        yield small


@pytest.fixture(scope="module")
def alone() -> Any:
    """The engine without the processor."""
    return start(str(WEIGHTS), processors=(), max_num_seqs=12)


@pytest.fixture(scope="module")
def roomy() -> Any:
    """With the processor, and no chunks of prompts: with a seed of its own, a request cannot have its prompt in chunks
    on the CPU (vLLM 0.32 sets back a generator that has no offset there)."""
    return start(str(WEIGHTS), max_num_seqs=12)


def used(ids: list[int], count: Any, prompt: list[int]) -> Any:
    return count([*prompt, *ids], len(prompt), find_delimiters(installed().tokenizer))


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1.5])
@pytest.mark.parametrize("budget", [0, 1, 8, 64])
def test_no_thought_is_over_its_budget(budget: int, temperature: float, engine: Any, count: Any) -> None:
    asked = [{"thinking_budget": budget}] * QUESTIONS
    torch.manual_seed(5)
    found = write(engine, prompts(), asked, temperature=temperature)
    free = write(engine, prompts(), [None] * QUESTIONS, temperature=temperature)
    longer = 0
    for ids, unlimited, prompt in zip(found, free, prompts(), strict=True):
        told = used(ids, count, prompt)
        assert told.used <= budget
        assert not told.open
        assert told.stray == 0
        longer += used(unlimited, count, prompt).used > budget
    short = budget == 64 and temperature == 0  # greedy thoughts of the reasoner are
    assert short or longer >= QUESTIONS // 4, "few thoughts would have been longer: nothing is shown here"


def test_a_close_is_forced_exactly_at_the_budget(engine: Any) -> None:
    """Where guidance and the closing window leave the thought alone: with a minimum that is the budget."""
    asked = [{"thinking_budget": n, "min_thinking_tokens": n} for n in range(QUESTIONS)]
    found = write(engine, prompts(), asked)
    assert [ids.index(CLOSE) for ids in found] == list(range(QUESTIONS))


KNOBS: list[dict[str, Any] | None] = [
    {"thinking_budget": 12},
    None,
    {"effort": "low"},
    {"effort": 0.7, "thinking_budget": 40},
    {"effort": "none"},
    {"thinking_target": 20, "target_tolerance": 3},
    {"effort": "max", "answer_reserve": 200},
    {"min_thinking_tokens": 30},
]


def test_a_batch_of_every_mix_writes_what_each_writes_alone_and_in_transformers(engine: Any) -> None:
    """Greedy, in float32, so that the tokens are the same ones; also of requests that were sent back."""
    asked = [KNOBS[at % len(KNOBS)] for at in range(QUESTIONS)]
    SENT_BACK.clear()
    together = write(engine, prompts(), asked)
    assert len(set(SENT_BACK)) >= 4
    single = [write(engine, [prompt], [knobs])[0] for prompt, knobs in zip(prompts(), asked, strict=True)]
    assert together == single
    model = installed().model
    for prompt, knobs, ids in zip(prompts(), asked, together, strict=True):
        sequence = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=256, **(knobs or {"effort": "auto"})
        )
        assert ids == sequence[0, len(prompt) :].tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_without_a_limit_the_engine_is_what_it_is_without_the_processor(
    temperature: float, roomy: Any, alone: Any
) -> None:
    """Also beside rows that have limits."""
    options, engine = {"temperature": temperature, "seed": 11}, roomy
    free = write(alone, prompts(), [None] * QUESTIONS, **options)
    assert write(engine, prompts(), [None] * QUESTIONS, **options) == free
    asked = [None if at % 2 else {"thinking_budget": 6} for at in range(QUESTIONS)]
    mixed = write(engine, prompts(), asked, **options)
    assert mixed[1::2] == free[1::2]
    assert mixed[::2] != free[::2]


def test_several_samples_of_a_prompt(engine: Any, count: Any) -> None:
    """They share the prompt's cache; each is a request of its own."""
    asked = [{"thinking_budget": 10}, {"effort": "medium"}]
    found = write(engine, prompts()[:2], asked, n=6, temperature=1.0)
    assert len({tuple(ids) for ids in found[:6]}) > 1
    assert all(used(ids, count, prompts()[0]).used <= 10 for ids in found[:6])


def test_the_forecast_is_the_same_by_hook_by_logits_and_in_the_engine(engine: Any) -> None:
    """Concentration and rate at prefixes inside thoughts, three ways."""
    model, forecast = installed().model, installed().forecast
    assert forecast is not None
    texts = write(engine, prompts(), [None] * QUESTIONS)
    prefixes = [
        prompt + ids[: at % max(ids.index(CLOSE), 1)] if CLOSE in ids else prompt
        for at, (prompt, ids) in enumerate(zip(prompts(), texts, strict=True))
    ]
    heard: list[torch.Tensor] = []
    inside = processor_of(engine).served.forecast
    outlook = inside.outlook

    def listen(scores: torch.Tensor, own_logits: bool = False) -> Any:
        found = outlook(scores, own_logits)
        heard.append(torch.stack(found.parameters, 1).clone())
        return found

    inside.outlook = listen
    try:
        for prefix in prefixes:
            heard_before = len(heard)
            write(engine, [prefix], [{"effort": "high"}], max_tokens=1)
            del heard[heard_before:-1]  # chunks of the prompt
    finally:
        del inside.outlook
    served = torch.cat(heard)
    by_hook, by_logits = [], []
    for prefix in prefixes:
        with torch.no_grad(), HookHiddenState(model) as hook:
            logits = model(torch.tensor([prefix])).logits[:, -1]
        found = forecast.outlook(logits)
        by_logits.append(torch.stack(found.parameters, 1))
        by_hook.append(torch.stack(forecast.predictor.state_parameters(hook.hidden), 1))
    exact = torch.cat(by_hook)
    assert exact.std(0).min() > 0.05, "prefixes of one kind: nothing is compared"
    assert served.shape == exact.shape
    torch.testing.assert_close(torch.cat(by_logits), exact, rtol=2e-4, atol=0)
    torch.testing.assert_close(served, exact, rtol=2e-4, atol=0)
