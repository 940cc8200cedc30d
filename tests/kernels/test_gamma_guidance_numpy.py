"""Guidance of few rows by NumPy against the reference in float64, and what is left to PyTorch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetctl.kernels import gamma_guidance as module
from budgetctl.kernels import gamma_guidance_numpy, reference
from budgetctl.kernels.gamma_guidance import Action, GuidanceHead, gamma_guidance, pack_rows
from budgetctl.kernels.row_state import CLOSING, LEFT, LOWER, STRENGTH, TEMPERATURE

WIDTH, RANK = 12, 4


def make(
    seed: int,
    batch: int,
    vocab: int,
    k: int,
    closes: int = 1,
    spread: float = 1.0,
    banned: int = 0,
    bias: tuple[float, float] = (6.0, 3.0),
) -> dict[str, Any]:
    """Rows of any action; float32, as the controller has them."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def drawn(most: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, most, shape, generator=generator)

    logits = 3 * normal(batch, vocab)
    logits[:, :banned] = -math.inf
    scores, ids = logits.topk(k, 1)
    closing = drawn(vocab, batch, closes)
    closing[::2, 0] = ids[::2, 0]
    action = drawn(4, batch)
    action[0] = Action.GUIDE
    rows = pack_rows(
        action,
        drawn(3000, batch),
        closing,
        strength=4 * torch.rand(batch, generator=generator),
        temperature=0.2 + torch.rand(batch, generator=generator),
        lower=drawn(100, batch) - 50,
        forced_ids=drawn(vocab, batch),
    )
    head = GuidanceHead(0.3 * normal(2, WIDTH), torch.tensor(bias), normal(vocab, RANK), 1e-4)
    return {
        "logits": logits,
        "features": spread * normal(batch, WIDTH + 2 * RANK),
        "head": head,
        "candidate_scores": scores,
        "candidate_ids": ids,
        "rows": rows,
    }


def in_double(case: dict[str, Any]) -> dict[str, Any]:
    head = case["head"]
    double = {name: case[name].double() for name in ("logits", "features", "candidate_scores")}
    wide = GuidanceHead(head.weight.double(), head.bias.double(), head.table.double(), head.floor)
    return case | double | {"head": wide}


def check(case: dict[str, Any], **options: Any) -> None:
    kept = case["logits"].clone()
    assert gamma_guidance_numpy.takes(
        case["logits"], case["features"], case["head"], case["candidate_scores"]
    )
    found, fit = gamma_guidance_numpy.gamma_guidance(**case, **options)
    expected, expected_fit = reference.gamma_guidance(**in_double(case), **options)
    assert torch.equal(case["logits"], kept)
    assert (found.dtype, fit.dtype) == (torch.float32, torch.float32)
    # An interval is the difference of two probabilities, and loses digits by it.
    tolerance = 1e-3 if options.get("interval") else 2e-5
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=10 * tolerance)
    torch.testing.assert_close(fit.double(), expected_fit, rtol=tolerance, atol=tolerance)
    for row, action in enumerate(case["rows"][:, 0].tolist()):
        if action in (Action.LEAVE, Action.EVALUATE):
            assert torch.equal(found[row].view(torch.int32), kept[row].view(torch.int32))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    batch=st.integers(1, 9),
    vocab=st.integers(2, 200),
    k=st.integers(1, 64),
    closes=st.integers(1, 3),
    spread=st.floats(0, 3),
    banned=st.integers(0, 100),
    concentration=st.floats(-9, 200),
    rate=st.floats(-9, 30),
    interval=st.booleans(),
    tail=st.sampled_from(["exact", "relative"]),
)
def test_as_the_reference_in_float64(
    seed: int,
    batch: int,
    vocab: int,
    k: int,
    closes: int,
    spread: float,
    banned: int,
    concentration: float,
    rate: float,
    interval: bool,
    tail: str,
) -> None:
    case = make(
        seed, batch, vocab, min(k, vocab), closes, spread, min(banned, vocab - 1), (concentration, rate)
    )
    check(case, interval=interval, tail=tail)


def test_where_the_probability_underflows() -> None:
    """Concentrations of 400 and bounds of log 2: log P is below -700, beyond float64's smallest numbers."""
    case = make(1, 4, 50, 20, bias=(400.0, 1.0))
    case["rows"][:, LEFT] = 0
    check(case)
    _, fit = gamma_guidance_numpy.gamma_guidance(**case)
    assert fit.min() < -700
    assert fit.isfinite().all()


@pytest.mark.parametrize("tail", ["exact", "relative"])
@pytest.mark.parametrize("vocab", [300, gamma_guidance_numpy.MOST_LOGITS])
def test_in_place_and_into_a_strided_tensor(vocab: int, tail: str) -> None:
    case = make(2, 5, vocab, 30, 2)
    new, fit = gamma_guidance_numpy.gamma_guidance(**case, tail=tail)
    wide = torch.zeros(5, vocab + 7)
    found, fit_there = gamma_guidance_numpy.gamma_guidance(**case, tail=tail, out=wide[:, :vocab])
    assert torch.equal(found, new)
    assert torch.equal(fit_there, fit)
    assert torch.equal(wide[:, vocab:], torch.zeros(5, 7))
    wide[:, :vocab] = case["logits"]
    here, _ = gamma_guidance_numpy.gamma_guidance(
        **(case | {"logits": wide[:, :vocab]}), tail=tail, out=(place := wide[:, :vocab])
    )
    assert here is place
    assert torch.equal(here, new)


@pytest.mark.parametrize("tail", ["exact", "relative"])
def test_rows_that_are_not_guided_keep_a_negative_zero(tail: str) -> None:
    case = make(3, 3, 40, 10)
    case["rows"][:, 0] = torch.tensor([Action.GUIDE, Action.LEAVE, Action.EVALUATE]).double()
    case["logits"] = torch.where(torch.arange(40) % 2 == 0, case["logits"], -0.0)
    found, _ = gamma_guidance_numpy.gamma_guidance(**case, tail=tail)
    assert torch.equal(found[1:].view(torch.int32), case["logits"][1:].view(torch.int32))


@pytest.mark.parametrize(
    ("batch", "change"),
    [
        (2, {"logits": torch.bfloat16}),
        (2, {"features": torch.float16}),
        (gamma_guidance_numpy.MOST_CANDIDATES // 10 + 1, {}),
    ],
)
def test_what_is_left_to_the_reference(
    batch: int, change: dict[str, torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.gamma_guidance_numpy, "gamma_guidance", lambda *_, **__: pytest.fail("taken"))
    case = make(4, batch, 40, 10)
    for name, dtype in change.items():
        case[name] = case[name].to(dtype)
    if "features" in change:
        head = case["head"]
        case["head"] = GuidanceHead(head.weight.half(), head.bias.half(), head.table.half(), head.floor)
    found, _ = gamma_guidance(**case)
    assert found.shape == (batch, 40)


def test_a_gradient_goes_through_the_reference() -> None:
    case = make(5, 2, 40, 10)
    case["logits"].requires_grad_()
    found, _ = gamma_guidance(**case)
    found[found.isfinite()].sum().backward()
    assert case["logits"].grad is not None


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("vocab", [50, gamma_guidance_numpy.MOST_LOGITS])
def test_rows_that_are_all_guided_need_no_packing(batch: int, in_place: bool, vocab: int) -> None:
    case = make(6, batch, vocab, 20, 2, banned=3)
    rows = case["rows"]
    rows[:, [0, LOWER, STRENGTH]] = torch.tensor([Action.GUIDE, -1.0, 1.7], dtype=torch.float64)
    expected, _ = gamma_guidance_numpy.gamma_guidance(**case)
    found = gamma_guidance_numpy.guide_every_row(
        case["logits"],
        case["features"].numpy(),
        case["head"],
        case["candidate_scores"],
        case["candidate_ids"],
        rows[:, CLOSING:].numpy().astype(int),
        rows[:, LEFT].numpy(),
        rows[:, TEMPERATURE, None].numpy(),
        1.7,
        case["logits"] if in_place else None,
    )
    assert torch.equal(found, expected)
    assert (found is case["logits"]) == in_place
