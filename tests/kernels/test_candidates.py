"""The likeliest tokens, in one step and in two."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetctl.kernels.candidates import BLOCK, LARGE_VOCABULARY, top_candidates


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    vocab=st.sampled_from([100, LARGE_VOCABULARY, LARGE_VOCABULARY + 1, 20_000, 32_000 + BLOCK - 1]),
    k=st.sampled_from([1, 2, 64]),
    levels=st.sampled_from([2, 50, 10**6]),
    banned=st.floats(0, 1),
    last=st.integers(0, 70),
)
def test_the_same_values_as_topk_and_their_own_distinct_ids(
    seed: int, vocab: int, k: int, levels: int, banned: float, last: int
) -> None:
    """Also with equal scores, with banned tokens, and where the highest are the last of the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, levels, (3, vocab), generator=generator).float()
    scores[torch.rand(3, vocab, generator=generator) < banned] = -torch.inf
    if last:
        scores[1, -last:] = levels + torch.arange(float(last))
    values, ids = top_candidates(scores, k)
    assert torch.equal(values.sort(1, descending=True).values, scores.topk(k, 1).values)
    assert torch.equal(scores.gather(1, ids), values)
    assert all(len(set(row)) == k for row in ids.tolist())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_and_more_candidates_than_blocks(dtype: torch.dtype) -> None:
    scores = torch.randn(2, LARGE_VOCABULARY).to(dtype)
    for k in (5, LARGE_VOCABULARY // BLOCK + 1):
        values, ids = top_candidates(scores, k)
        assert values.dtype == dtype
        assert ids.dtype == torch.int64
        assert torch.equal(values.sort(1, descending=True).values, scores.topk(k, 1).values)
