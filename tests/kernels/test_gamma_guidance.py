"""Guidance of a batch: the reference, what holds for any input, and the Triton kernel without a GPU."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetctl.errors import KernelError
from budgetctl.kernels.gamma_guidance import (
    BLOCK_VOCAB,
    Action,
    GuidanceHead,
    gamma_guidance,
    launch_options,
    pack_rows,
)
from budgetctl.kernels.log_gamma_cdf import log_gamma_cdf
from budgetctl.kernels.reference import guidance_push, interval_fit
from budgetctl.kernels.resources import compiled_resources, launch_cost, shape_of_head
from tests.triton_process import needs_compiler, needs_cuda, needs_triton, run_cases

VOCAB, WIDTH, RANK = 40, 8, 3
ACTIONS = [Action.GUIDE, Action.LEAVE, Action.EVALUATE, Action.FORCE, Action.GUIDE]
CASES = Path(__file__).with_name("kernel_cases.py")


@pytest.mark.slow
@needs_triton
def test_kernel_equals_the_reference_in_the_interpreter() -> None:
    run_cases(CASES, TRITON_INTERPRET="1")


@pytest.mark.gpu
@needs_triton
@needs_cuda
def test_kernel_equals_the_reference_on_cuda() -> None:
    run_cases(CASES)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("tail", ["exact", "relative"])
@pytest.mark.parametrize("interval", [False, True])
def test_kernel_compiles_for_sm_90(
    interval: bool, tail: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for dtype in (torch.float32, torch.bfloat16):
        found = compiled_resources(interval=interval, tail=tail, dtype=dtype)
        assert found.spilled == 0
        assert 16 <= found.registers <= 128
        assert found.shared <= 1024
        # One element a thread: several would be several times as much.
        assert 500 < found.flops < (2000 if interval else 1200)


@pytest.mark.slow
@needs_compiler
def test_kernel_compiles_with_numbers_as_inductor_passes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    single, double = (compiled_resources(interval=True, number=number) for number in ("fp32", "fp64"))
    assert double.flops == single.flops


def batch(dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Any]:
    """Arguments of ``gamma_guidance`` for one row of each action."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    logits = 2 * normal(len(ACTIONS), VOCAB)
    logits[:, 7] = -0.0
    scores, ids = logits.topk(6, 1)
    closing = torch.tensor([[3, 4]] * len(ACTIONS))
    closing[0, 0] = ids[0, 1]
    rows = pack_rows(
        torch.tensor(ACTIONS),
        torch.tensor([3, 50, 9, 0, 200]),
        closing,
        strength=2.0,
        temperature=torch.tensor([0.7, 1.0, 1.0, 1.0, 1.3]),
        lower=torch.tensor([1, -1, -1, -1, 20]),
        forced_ids=torch.full((len(ACTIONS),), 11),
    )
    head = GuidanceHead(normal(2, WIDTH), torch.tensor([6.0, 3.0], dtype=dtype), normal(VOCAB, RANK), 1e-4)
    return {
        "logits": logits,
        "features": normal(len(ACTIONS), WIDTH + 2 * RANK),
        "head": head,
        "candidate_scores": scores,
        "candidate_ids": ids,
        "rows": rows,
    }


def by_hand(case: dict[str, Any], row: int, interval: bool) -> tuple[torch.Tensor, float]:
    """One guided row, token by token, and its state's log P."""
    head, features = case["head"], case["features"][row]
    action, left, lower, temperature, strength, _, *closing = case["rows"][row].tolist()
    assert action == Action.GUIDE
    trunk, query_a, query_r = features.split([WIDTH, RANK, RANK])
    state = head.weight @ (trunk * trunk.sigmoid()) + head.bias

    def log_fit(token: int | None) -> torch.Tensor:
        moved = (
            torch.zeros(2)
            if token is None
            else torch.stack([head.table[token] @ query_a, head.table[token] @ query_r])
        )
        a, rate = (1 + (state + moved).exp()).log() + head.floor
        high = log_gamma_cdf(a, rate, math.log(left + 2))
        if not interval or lower < 0:
            return high
        return interval_fit(
            high[None], log_gamma_cdf(a, rate, math.log(lower + 2))[None], torch.tensor([True])
        )[0]

    ids = case["candidate_ids"][row].tolist()
    fit, state_fit = torch.stack([log_fit(token) for token in ids]), log_fit(None)
    push, tail = guidance_push(
        (case["logits"][row, ids] / temperature).log_softmax(0)[None],
        torch.tensor([ids]),
        fit[None],
        state_fit[None],
        torch.tensor([closing]).long(),
        strength,
    )
    guided = case["logits"][row].clone()
    for token in range(VOCAB):
        if token not in closing:
            guided[token] += temperature * (push[0, ids.index(token)] if token in ids else tail[0, 0])
    return guided, float(state_fit)


@pytest.mark.parametrize("interval", [False, True])
def test_guided_rows_are_the_formula_token_by_token(interval: bool) -> None:
    case = batch()
    kept = case["logits"].clone()
    found, state_fit = gamma_guidance(**case, interval=interval)
    assert torch.equal(case["logits"], kept)
    for row in (0, 4):
        expected, expected_fit = by_hand(case, row, interval)
        torch.testing.assert_close(found[row], expected, rtol=1e-12, atol=1e-12)
        assert (found[row] != kept[row]).sum() >= VOCAB - 4
        assert float(state_fit[row]) == pytest.approx(expected_fit, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tail", ["exact", "relative"])
def test_rows_that_are_not_guided(dtype: torch.dtype, tail: str) -> None:
    case = batch()
    case["logits"] = case["logits"].to(dtype)
    found, state_fit = gamma_guidance(**case, tail=tail)
    assert found.dtype == dtype
    for row in (1, 2):
        assert torch.equal(found[row].view(torch.uint8), case["logits"][row].view(torch.uint8))
    assert found[3].isneginf().sum() == VOCAB - 1
    assert found[3, 11] == 0
    assert state_fit[[1, 3]].tolist() == [0, 0]
    assert bool((state_fit[[0, 2, 4]] < 0).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tail", ["exact", "relative"])
def test_in_place_and_into_another_tensor_are_the_same(dtype: torch.dtype, tail: str) -> None:
    case = batch()
    case["logits"] = case["logits"].to(dtype)
    new, fit = gamma_guidance(**case, tail=tail)
    out = torch.empty_like(case["logits"])
    assert gamma_guidance(**case, tail=tail, out=out)[0] is out
    assert torch.equal(out, new)
    found, fit_here = gamma_guidance(**case, tail=tail, out=case["logits"])
    assert found is case["logits"]
    assert torch.equal(found, new)
    assert torch.equal(fit, fit_here)


def test_relative_has_the_same_softmax_and_touches_only_candidates_and_closes() -> None:
    case = batch()
    exact, _ = gamma_guidance(**case)
    relative, _ = gamma_guidance(**case, tail="relative")
    torch.testing.assert_close(relative.softmax(1), exact.softmax(1), rtol=1e-12, atol=0)
    closing = case["rows"][:, 6:].long()
    ids = torch.cat([case["candidate_ids"], closing], 1)
    for row in (0, 4):
        assert not torch.allclose(relative[row], exact[row])
        others = [token for token in range(VOCAB) if token not in ids[row].tolist()]
        assert torch.equal(relative[row, others], case["logits"][row, others])


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    left=st.integers(0, 2**40),
    lower=st.integers(-1, 2**40),
    strength=st.floats(0, 100),
    temperature=st.floats(0.01, 100),
    spread=st.floats(0, 1e3),
    banned=st.integers(0, VOCAB),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_never_nan_and_only_banned_tokens_at_minus_infinity(
    seed: int,
    left: int,
    lower: int,
    strength: float,
    temperature: float,
    spread: float,
    banned: int,
    dtype: torch.dtype,
) -> None:
    case = batch(dtype, seed)
    case["features"] *= spread
    case["logits"][:, :banned] = -torch.inf
    case["candidate_scores"], case["candidate_ids"] = case["logits"].topk(6, 1)
    case["rows"][:, 1:5] = torch.tensor([left, min(lower, left), temperature, strength]).double()
    for tail in ("exact", "relative"):
        found, state_fit = gamma_guidance(**case, interval=True, tail=tail)
        assert state_fit.isfinite().all()
        assert not found.isnan().any()
        assert torch.equal(found[[0, 4]].isfinite(), case["logits"][[0, 4]].isfinite())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tail": "none"}, "unknown tail 'none': expected one of exact, relative"),
        ({"features": torch.zeros(5, 3)}, r"features have shape \(5, 3\): expected \(5, 14\)"),
        ({"candidate_ids": torch.zeros(5, 7).long()}, r"shapes \(5, 6\) and \(5, 7\)"),
        ({"rows": torch.zeros(4, 8).double()}, r"rows have shape \(4, 8\)"),
        ({"rows": torch.zeros(5, 8)}, "rows have shape"),
        ({"out": torch.zeros(5, VOCAB)}, "out is torch.float32 .*: expected torch.float64"),
    ],
)
def test_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(KernelError, match=words) as caught:
        gamma_guidance(**(batch() | change))
    assert "\n" not in str(caught.value)


def test_rows_need_a_closing_token() -> None:
    with pytest.raises(KernelError, match="at least one token a row"):
        pack_rows(torch.zeros(2), torch.zeros(2), torch.zeros(2, 0), strength=1.0)


@pytest.mark.parametrize("rows", [1, 8, 32, 128, 2000])
@pytest.mark.parametrize("vocab", [5, 32_000, 151_936, 256_000])
def test_the_programs_of_a_row_cover_its_vocabulary(rows: int, vocab: int) -> None:
    head = shape_of_head(vocab)
    for exact in (True, False):
        parts, constants = launch_options(rows, vocab, 5, 1, head, interval=False, exact=exact, in_place=True)
        span = constants["BLOCKS"] * constants["BLOCK_V"]
        assert (parts - 1) * span < vocab <= parts * span
        assert constants["BLOCK_V"] <= BLOCK_VOCAB
        assert exact or parts == 1


def test_cost_in_place_does_not_grow_with_the_vocabulary_unless_it_is_written() -> None:
    def cost(rows: int, vocab: int, tail: str) -> tuple[int, int]:
        found = launch_cost(rows, vocab, tail=tail, flops_a_thread=900)
        return found.bytes, found.flops

    assert cost(8, 32_000, "relative") == cost(8, 256_000, "relative")
    once, twice, thrice = (cost(rows, 32_000, "relative") for rows in (1, 2, 3))
    assert thrice[0] - twice[0] == twice[0] - once[0] > 0
    assert cost(8, 256_000, "exact")[0] > 2 * 4 * 8 * 256_000
