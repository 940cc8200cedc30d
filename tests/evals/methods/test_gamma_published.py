"""The published rule against the formula, in float64 on a toy vocabulary, and by this project's predictor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import gamma

from budgetctl.errors import EvalError
from budgetctl.evals.harness.method import Item, Setting
from budgetctl.evals.methods import gamma_published
from budgetctl.evals.methods.gamma_published import GammaPublished, PublishedGuidance, predictor_fit
from budgetctl.forecast import LengthForecast
from tests.conftest import BOT, CLOSE, DIGIT, HEAD, LINE, OPEN, SINGLE, VOCAB, A, B

HEADER = [BOT, HEAD, OPEN]
IS_LINE = torch.tensor([token == LINE for token in range(VOCAB)])


@pytest.fixture
def heads() -> tuple[torch.Tensor, torch.Tensor]:
    """Concentration and rate of every token."""
    torch.manual_seed(1)
    return 1 + 4 * torch.rand(VOCAB, dtype=torch.float64), 0.5 + torch.rand(VOCAB, dtype=torch.float64)


def by_heads(heads: tuple[torch.Tensor, torch.Tensor]) -> Callable[..., torch.Tensor]:
    """log P(L <= left | v) with scipy."""

    def fit(scores: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        bound = np.log(left.numpy() + 1.0)[:, None]
        shape, rate = (head.numpy()[None, :] for head in heads)
        return torch.from_numpy(gamma.logcdf(bound, shape, scale=1 / rate))

    return fit


@pytest.mark.parametrize(
    ("thought", "guided"),
    [
        ([], True),
        ([A, B], False),
        ([A, LINE], True),
        ([A, LINE, B, LINE], True),
        ([LINE] * 9, True),  # over the budget: one token is left, not fewer
        ([A, LINE, CLOSE, LINE], False),
    ],
)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_formula(
    heads: tuple[torch.Tensor, torch.Tensor], thought: list[int], guided: bool, temperature: float
) -> None:
    budget = 6
    scores = torch.randn(1, VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ids = torch.tensor([HEADER + thought])
    processor = PublishedGuidance(by_heads(heads), SINGLE, budget, len(HEADER), IS_LINE, temperature)
    result = torch.softmax(processor(ids, scores) / temperature, 1)
    expected = torch.softmax(scores / temperature, 1)
    if guided:
        # p(v) P(log(L + 1) <= log(b - t + 1) | v), normalised; the close is a token like others.
        left = max(budget - len(thought), 1)
        shape, rate = (head.numpy() for head in heads)
        fits = torch.from_numpy(gamma.cdf(np.log(left + 1), shape, scale=1 / rate))
        weighed = torch.softmax(scores, 1) * fits
        expected = weighed / weighed.sum()
        assert not torch.allclose(expected, torch.softmax(scores / temperature, 1), atol=1e-3)
    assert torch.allclose(result, expected, rtol=1e-12)


def test_rows_are_guided_each_for_itself(heads: tuple[torch.Tensor, torch.Tensor]) -> None:
    scores = torch.randn(3, VOCAB, dtype=torch.float64)
    ids = torch.tensor([[0, *HEADER, A, LINE], [*HEADER, A, LINE, DIGIT], [0, 0, 0, *HEADER]])
    fit = by_heads(heads)
    together = PublishedGuidance(fit, SINGLE, 5, 6, IS_LINE)(
        ids, scores
    )  # the thoughts are given by the prompt
    assert torch.equal(together[1], scores[1])
    for row, left in ((0, 3), (2, 5)):
        alone = scores[row] + fit(scores[:1], torch.tensor([left]))[0]
        assert torch.allclose(together[row], alone, rtol=1e-12)


def test_by_the_predictor_every_token_has_its_own(
    forecast: LengthForecast, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = torch.randn(2, VOCAB, dtype=torch.float64)
    left = torch.tensor([1, 7])
    found = predictor_fit(forecast)(scores, left)
    outlook = forecast.outlook(scores)
    every = torch.arange(VOCAB).expand(2, -1)
    shape, rate = (part[:, 1:].numpy() for part in forecast.head.parameters(outlook.features, every))
    expected = gamma.logcdf(np.log(left.numpy() + 1.0)[:, None], shape, scale=1 / rate)
    assert torch.allclose(found, torch.from_numpy(expected), rtol=1e-9)
    assert float(found.std(1).min()) > 0
    monkeypatch.setattr(gamma_published, "BLOCK", 5)
    assert torch.allclose(predictor_fit(forecast)(scores, left), found, rtol=1e-12)


def test_it_needs_a_predictor(scripted: Any, dial: Item) -> None:
    with pytest.raises(EvalError, match="'gamma-published' needs a length predictor in the process"):
        GammaPublished().answer(scripted(str), [dial], Setting(budget=5), [1], 20)
