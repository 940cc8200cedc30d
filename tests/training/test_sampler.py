"""Rows keep their own randomness, limits and ends, whatever else is in the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, Qwen3ForCausalLM

from budgetctl.training.sampler import RowSampler, row_seeds

PAD, EOS, CLOSE = 0, 2, 4
PROMPTS = [(30, 31, 32), (40,), (50, 51, 52, 53, 54), (60, 61)]
SEEDS = [11, 12, 13, 14]


@pytest.fixture(scope="module")
def model(tiny: Path) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM.from_pretrained(tiny).double().eval()


def sampler(model: Qwen3ForCausalLM, **options: object) -> RowSampler:
    return RowSampler(model, PAD, (EOS,), **options)  # type: ignore[arg-type]


def test_a_row_alone_is_the_row_in_a_batch(model: Qwen3ForCausalLM) -> None:
    together = sampler(model).extend(PROMPTS, SEEDS, [12, 5, 12, 0])
    alone = [
        sampler(model).extend([prompt], [seed], [limit])[0]
        for prompt, seed, limit in zip(PROMPTS, SEEDS, [12, 5, 12, 0], strict=True)
    ]
    assert together == alone
    assert together[3] == ()
    assert len(set(map(len, together))) > 2  # the rows do not all run to one limit


@pytest.mark.parametrize("round_tokens", [1, 3, 100])
def test_rounds_change_nothing(model: Qwen3ForCausalLM, round_tokens: int) -> None:
    limits, stops = [12, 5, 9, 7], [(CLOSE,)]
    whole = sampler(model).extend(PROMPTS, SEEDS, limits, stops)
    assert sampler(model, round_tokens=round_tokens).extend(PROMPTS, SEEDS, limits, stops) == whole


def test_rows_end_with_their_first_end_of_sequence_or_stop(model: Qwen3ForCausalLM) -> None:
    seeds = list(range(64))
    rows = sampler(model).extend([PROMPTS[0]] * 64, seeds, [10] * 64, [(CLOSE,)])
    for row in rows:
        assert not {EOS, CLOSE} & set(row[:-1])
        assert len(row) == 10 or row[-1] in (EOS, CLOSE)
    assert {row[-1] for row in rows} >= {EOS, CLOSE}


def test_a_stop_of_several_tokens_counts_only_when_all_of_it_is_new(model: Qwen3ForCausalLM) -> None:
    seeds = list(range(32))
    free = sampler(model).extend([PROMPTS[0]] * 32, seeds, [8] * 32)
    row = next(row for row in free if len(row) == 8)
    stop = row[2:4]
    at = free.index(row)
    stopped = sampler(model, round_tokens=3).extend([PROMPTS[0]], [seeds[at]], [8], [stop])[0]
    assert stopped == row[:4]
    # Its first token stands at the end of the prompt: the stop is not complete in what is new.
    half = (*PROMPTS[0], stop[0])
    again = sampler(model).extend([half], [5], [8], [(stop[0], free[0][0])])[0]
    assert again == sampler(model).extend([half], [5], [8])[0]


def test_draws_follow_the_softmax(model: Qwen3ForCausalLM) -> None:
    count = 4000
    rows = sampler(model, temperature=1.5).extend(
        [PROMPTS[2]] * count, row_seeds(3, 1, range(count)), [1] * count
    )
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[2]])).logits[0, -1] / 1.5
    expected = logits.softmax(0)
    seen = torch.bincount(torch.tensor([row[0] for row in rows]), minlength=len(expected)).double() / count
    spread = (expected * (1 - expected) / count).sqrt()
    assert ((seen - expected).abs() <= 5 * spread + 1e-3).all()
    assert (seen > 0).sum() > 5


def test_top_k_of_one_is_greedy_and_the_models_own_config_stays_out(model: Qwen3ForCausalLM) -> None:
    with torch.no_grad():
        best = int(model(torch.tensor([PROMPTS[2]])).logits[0, -1].argmax())
    assert set(sampler(model, top_k=1).extend([PROMPTS[2]] * 8, list(range(8)), [1] * 8)) == {(best,)}
    before = model.generation_config
    model.generation_config = GenerationConfig(do_sample=True, top_k=1, eos_token_id=EOS, pad_token_id=PAD)
    try:
        rows = sampler(model).extend([PROMPTS[2]] * 64, list(range(64)), [1] * 64)
        assert len(set(rows)) > 1
        assert model.generation_config.top_k == 1
    finally:
        model.generation_config = before


def test_row_seeds_depend_on_seed_step_and_row_alone() -> None:
    assert row_seeds(7, 3, range(8))[4:] == row_seeds(7, 3, range(4, 8))
    all_seeds = {s for seed in (0, 1) for step in range(20) for s in row_seeds(seed, step, range(50))}
    assert len(all_seeds) == 2 * 20 * 50
