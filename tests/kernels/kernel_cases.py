"""The Triton kernels against float64, on CUDA or in Triton's interpreter; run by ``test_gamma_guidance.py``.

Not collected by itself: Triton decides at import whether it interprets (``TRITON_INTERPRET=1``), so that these run in a
process of their own.
"""

from __future__ import annotations

import math
import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from budgetctl.evals.kernel_tables import exact_log_cdf, grid
from budgetctl.kernels import gamma_guidance as module
from budgetctl.kernels import reference
from budgetctl.kernels.gamma_guidance import (
    Action,
    GuidanceHead,
    _launch,
    gamma_guidance,
    pack_rows,
)
from budgetctl.kernels.log_gamma_cdf import log_gamma_cdf
from budgetctl.kernels.log_gamma_cdf_triton import log_gamma_cdf_kernel
from budgetctl.kernels.row_state import CLOSING, LEFT, LOWER

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
needs_cuda = pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")

Case = tuple[torch.Tensor, torch.Tensor, GuidanceHead, torch.Tensor, torch.Tensor, torch.Tensor]


def kernel_log_cdf(shape: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    shape, z = shape.float().to(DEVICE), z.float().to(DEVICE)
    result = torch.full_like(z, torch.nan)
    log_gamma_cdf_kernel[(-(-len(z) // 4096),)](shape, z, result, len(z), 4096)
    return result.double().cpu()


def test_log_cdf_on_the_published_grid() -> None:
    shape, z = (t.float() for t in grid(least_z=1e-30))
    expected = exact_log_cdf(shape, z)
    assert expected.min() < -650
    error = (kernel_log_cdf(shape, z) - expected).abs()
    assert (error / (1 + expected.abs())).max() < 2e-6
    assert error[expected > -1].max() < 3e-6


def test_log_cdf_on_a_random_sweep() -> None:
    generator = torch.Generator().manual_seed(0)
    shape = 10 ** (7 * torch.rand(100_000, generator=generator) - 3)
    near = 1 + 3 * torch.randn(50_000, generator=generator) / shape[:50_000].sqrt()
    far = 10 ** (2 * torch.rand(50_000, generator=generator) - 1.2)
    z = shape * torch.cat([near, far]).clamp(min=1e-6)
    expected = log_gamma_cdf(shape.double(), 1.0, z.double())
    kept = expected >= -700
    error = (kernel_log_cdf(shape, z) - expected).abs() / (1 + expected.abs())
    assert kept.sum() > 80_000
    assert error[kept].max() < 2e-6


@settings(max_examples=30, deadline=None)
@given(
    hnp.arrays("float32", 64, elements=st.floats(-3, 4, width=32)),
    hnp.arrays("float32", 64, elements=st.floats(-46, 38.5, width=32)),
)
def test_log_cdf_is_a_number_at_most_zero(shape: Any, z: Any) -> None:
    """From denormal z, and zero, to the largest."""
    found = kernel_log_cdf(10.0 ** torch.tensor(shape), 10.0 ** torch.tensor(z))
    assert found.isfinite().all()
    assert found.max() <= 0


def make(
    batch: int,
    vocab: int,
    k: int,
    closes: int,
    width: int,
    rank: int,
    dtype: torch.dtype = torch.float32,
    interval: bool = False,
) -> Case:
    """Rows of all four actions; some closes are likely, some are no candidates."""
    generator = torch.Generator().manual_seed(batch + vocab)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    head = GuidanceHead(
        0.3 * normal(2, width).to(DEVICE),
        torch.tensor([12.0, 3.0], device=DEVICE),
        normal(vocab, rank).to(DEVICE),
        1e-4,
    )
    logits = (3 * normal(batch, vocab)).to(dtype)
    # Some tokens are banned, in the last row all but two.
    logits[:, : vocab // 10] = -math.inf
    if batch > 1:
        logits[-1, : vocab - 2] = -math.inf
    scores, ids = logits.topk(k, 1)
    closing = torch.randint(0, vocab, (batch, closes), generator=generator)
    closing[::2, 0] = ids[::2, 0]
    left = torch.randint(0, 400, (batch,), generator=generator)
    left[0] = 2**40
    number = torch.arange(batch)
    rows = pack_rows(
        torch.tensor([Action.GUIDE, Action.LEAVE, Action.GUIDE, Action.FORCE, Action.EVALUATE])[number % 5],
        left,
        closing,
        strength=torch.rand(batch, generator=generator) * 4,
        temperature=0.5 + torch.rand(batch, generator=generator),
        lower=torch.where(number % 2 == 0, left // 2, -1) if interval else None,
        forced_ids=torch.randint(0, vocab, (batch,), generator=generator),
    )
    features = normal(batch, width + 2 * rank)
    return logits.to(DEVICE), features.to(DEVICE), head, scores.to(DEVICE), ids.to(DEVICE), rows.to(DEVICE)


def in_double(case: Case) -> Case:
    logits, features, head, scores, ids, rows = case
    head = GuidanceHead(head.weight.double(), head.bias.double(), head.table.double(), head.floor)
    return logits.double(), features.double(), head, scores.double(), ids, rows


SIZES = [(6, 300, 64, 2, 64, 16), (7, 9001, 17, 3, 24, 5), (1, 20_000, 1, 1, 7, 1), (5, 64, 64, 1, 64, 16)]


@pytest.mark.parametrize("interval", [False, True])
@pytest.mark.parametrize("tail", ["exact", "relative"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", SIZES)
def test_kernel_equals_the_reference(
    sizes: tuple[int, ...], dtype: torch.dtype, tail: str, interval: bool
) -> None:
    case = make(*sizes, dtype=dtype, interval=interval)
    logits, rows = case[0], case[5]
    expected, expected_fit = reference.gamma_guidance(*in_double(case), interval=interval, tail=tail)
    kept = logits.clone()
    new, fit = _launch(*case, interval, tail == "exact", None)
    assert torch.equal(logits, kept)
    here, fit_here = _launch(*case, interval, tail == "exact", logits)
    assert here is logits
    assert torch.equal(here, new)
    assert torch.equal(fit_here, fit)
    assert torch.equal(new.isneginf(), expected.isneginf())
    # An interval is the difference of two probabilities, and loses digits by it.
    digits = {torch.float32: 3e-3 if interval else 3e-5, torch.bfloat16: 8e-3, torch.float16: 3e-3}[dtype]
    finite = expected.isfinite()
    error = (new.double() - expected)[finite].abs() / (1 + expected[finite].abs())
    assert error.max() < digits
    assert ((fit.double() - expected_fit).abs() / (1 + expected_fit.abs())).max() < digits
    untouched = (rows[:, 0] == Action.LEAVE) | (rows[:, 0] == Action.EVALUATE)
    assert torch.equal(new[untouched].view(torch.uint8), kept[untouched].view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("strength", [2.0, 1e300])
@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 1.0, 1e300])
def test_finite_at_any_strength_and_temperature(
    temperature: float, strength: float, dtype: torch.dtype
) -> None:
    logits, features, head, scores, ids, rows = make(6, 300, 17, 2, 24, 5, dtype=dtype, interval=True)
    bounded = pack_rows(
        *(rows[:, at] for at in (0, LEFT)), rows[:, CLOSING:], strength=strength, temperature=temperature
    )
    bounded[:, LOWER] = rows[:, LOWER]
    for exact in (True, False):
        found, fit = _launch(logits, features, head, scores, ids, bounded, True, exact, None)
        assert fit.isfinite().all()
        unforced = bounded[:, 0] != Action.FORCE
        assert torch.equal(found.isfinite()[unforced], logits.isfinite()[unforced])


def test_negative_zeros_of_untouched_rows_stay() -> None:
    case = make(5, 64, 64, 1, 64, 16)
    case[0][1] = -0.0
    new, _ = _launch(*case, False, True, None)
    assert torch.equal(new[1].view(torch.int32), case[0][1].view(torch.int32))


def test_a_program_with_several_blocks_of_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the five blocks, the last of which is not full."""
    monkeypatch.setattr(module, "ENOUGH_PROGRAMS", 9)
    case = make(6, 20_000, 2, 1, 4, 1)
    parts, constants = module.launch_options(
        6, 20_000, 2, 1, case[2], interval=False, exact=True, in_place=False
    )
    assert (parts, constants["BLOCKS"]) == (3, 2)
    expected, _ = reference.gamma_guidance(*in_double(case))
    finite = expected.isfinite()
    for out in (None, case[0]):
        found, _ = _launch(*case, False, True, out)
        assert torch.equal(found.isfinite(), finite)
        assert ((found - expected)[finite].abs() / (1 + expected[finite].abs())).max() < 3e-5


def test_rows_that_are_views() -> None:
    """Row strides are not the widths."""
    logits, features, head, scores, ids, rows = make(6, 300, 8, 2, 64, 16)
    wide = torch.zeros(6, 512, device=DEVICE)
    wide[:, :300] = logits
    apart = [torch.cat([t, t], 1)[:, : t.shape[1]] for t in (features, scores, ids, rows)]
    expected, _ = _launch(logits, features, head, scores, ids, rows, False, True, None)
    found, _ = _launch(
        wide[:, :300], apart[0], head, apart[1], apart[2], apart[3], False, True, wide[:, :300]
    )
    assert torch.equal(found, expected)
    assert bool((wide[:, 300:] == 0).all())


@needs_cuda
def test_dispatch_takes_the_kernel_without_a_sync_and_replays_in_a_graph() -> None:
    case = make(7, 9001, 64, 2, 64, 16)
    out = torch.empty_like(case[0])
    gamma_guidance(*case, out=out)
    torch.cuda.set_sync_debug_mode("error")
    try:
        gamma_guidance(*case, out=out)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _, fit = gamma_guidance(*case, out=out)
    case[5][:, LEFT] += 7
    graph.replay()
    expected, expected_fit = gamma_guidance(*case)
    assert torch.equal(out, expected)
    assert torch.equal(fit, expected_fit)
