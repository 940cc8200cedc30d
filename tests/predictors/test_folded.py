"""Features from logits in one product: the same as through the hidden state."""

from __future__ import annotations

import pytest
import torch

from budgetctl.predictors import folded as module
from budgetctl.predictors.folded import FoldedFeatures
from budgetctl.predictors.gamma import FLOOR, GammaLengthPredictor, GammaPredictorConfig
from budgetctl.predictors.hidden_state import LogitsHiddenState

SIZE, VOCAB, WIDTH, RANK = 24, 300, 10, 4


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    """[V, d] with a common mean, float64."""
    return torch.randn(VOCAB, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5


@pytest.fixture(scope="module")
def predictor(weight: torch.Tensor) -> GammaLengthPredictor:
    """Random, its scales far from 0 and 1."""
    torch.manual_seed(0)
    made = GammaLengthPredictor(GammaPredictorConfig(SIZE, WIDTH, RANK)).double()
    made.set_scales(3 + torch.rand(64, SIZE).double() * torch.linspace(0.1, 20, SIZE).double(), weight)
    torch.nn.init.normal_(made.token_query.weight)
    torch.nn.init.normal_(made.token_query.bias)
    return made


def features(
    predictor: GammaLengthPredictor, source: LogitsHiddenState, dtype: torch.dtype = torch.float64
) -> FoldedFeatures:
    return FoldedFeatures(source, *predictor.input_map(), dtype)


@torch.no_grad()
def through_the_hidden_state(predictor: GammaLengthPredictor, hidden: torch.Tensor) -> torch.Tensor:
    """What the predictor's own layers make of the hidden state, [B, n]."""
    standard = (hidden - predictor.hidden_mean) / predictor.hidden_scale
    return torch.cat([predictor.trunk(standard), predictor.token_query(standard)], 1)


def logits_of(weight: torch.Tensor, rows: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = 2 * torch.randn(rows, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return hidden, hidden @ weight.T


@pytest.mark.parametrize("anchors", [None, torch.arange(0, VOCAB, 3)])
@pytest.mark.parametrize("own_logits", [False, True])
def test_equal_to_the_unfolded_path_in_double(weight, predictor, anchors, own_logits):
    hidden, logits = logits_of(weight)
    source = LogitsHiddenState(weight, anchors=anchors, dtype=torch.float64)
    found = features(predictor, source)(logits, own_logits)
    assert found.shape == (5, WIDTH + 2 * RANK)
    torch.testing.assert_close(
        found, through_the_hidden_state(predictor, source(logits)), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(found, through_the_hidden_state(predictor, hidden), rtol=1e-10, atol=1e-10)


def test_bias_scale_cap_and_shift_of_the_logits(weight, predictor):
    hidden, _ = logits_of(weight)
    bias = torch.randn(VOCAB, dtype=torch.float64)
    capped = 30 * torch.tanh(0.25 * (hidden @ weight.T + bias) / 30)
    source = LogitsHiddenState(weight, bias=bias, scale=0.25, softcap=30.0, dtype=torch.float64)
    expected = through_the_hidden_state(predictor, hidden)
    torch.testing.assert_close(features(predictor, source)(capped), expected, rtol=1e-8, atol=1e-8)
    plain = features(predictor, LogitsHiddenState(weight, dtype=torch.float64))
    shifted = (hidden @ weight.T).log_softmax(1) - 50
    torch.testing.assert_close(plain(shifted), expected, rtol=1e-9, atol=1e-9)


def test_single_precision(weight, predictor):
    hidden, logits = logits_of(weight)
    source = LogitsHiddenState(weight, dtype=torch.float32)
    found = features(predictor, source, torch.float32)(logits.float())
    assert found.dtype == torch.float32
    expected = through_the_hidden_state(predictor, hidden)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


def test_only_rows_with_a_ban_take_the_way_through_the_hidden_state(weight, predictor):
    _, logits = logits_of(weight)
    logits[2, 5:9] = -torch.inf
    source = LogitsHiddenState(weight, dtype=torch.float64)
    folded = features(predictor, source)
    found = folded(logits)
    expected = through_the_hidden_state(predictor, source(logits))
    # The system for banned anchors is regularised by one part in a million.
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    whole = [0, 1, 3, 4]
    torch.testing.assert_close(found[whole], folded(logits[whole]), rtol=1e-12, atol=1e-12)
    assert folded(torch.full_like(logits, -torch.inf)).isfinite().all()


@pytest.mark.parametrize("own_logits", [False, True])
def test_on_a_device_that_is_not_stopped(weight, predictor, own_logits, monkeypatch):
    monkeypatch.setattr(module, "may_look", lambda device: False)
    _, logits = logits_of(weight)
    source = LogitsHiddenState(weight, dtype=torch.float64)
    folded = features(predictor, source)
    expected = through_the_hidden_state(predictor, source(logits))
    torch.testing.assert_close(folded(logits, own_logits), expected, rtol=1e-12, atol=1e-12)
    # A ban is exact unless the logits are said to have none; then it counts as the mean.
    logits[2, 5:9] = -torch.inf
    found = folded(logits, own_logits)
    assert found.isfinite().all()
    torch.testing.assert_close(found[[0, 1, 3, 4]], expected[[0, 1, 3, 4]], rtol=1e-12, atol=1e-12)
    exact = bool(torch.allclose(found[2], expected[2], rtol=1e-3, atol=1e-3))
    assert exact != own_logits


def test_the_head_is_the_predictor_after_its_first_layer(weight, predictor):
    hidden, _ = logits_of(weight)
    head = predictor.guidance_head(weight)
    assert head.floor == FLOOR
    ids = torch.randint(0, VOCAB, (5, 7), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        made = through_the_hidden_state(predictor, hidden)
        state = predictor.state_parameters(hidden)
        candidates = predictor.candidate_parameters(hidden, predictor.candidate_table(weight)[ids])
        for found, alone, given in zip(head.parameters(made, ids), state, candidates, strict=True):
            torch.testing.assert_close(found, torch.cat([alone[:, None], given], 1), rtol=1e-12, atol=0)
        for found, alone in zip(head.state_parameters(made), state, strict=True):
            torch.testing.assert_close(found, alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize("anchors", [None, torch.arange(0, VOCAB, 3)])
@pytest.mark.parametrize("rows", [1, 40])
def test_few_rows_in_few_operations(weight, predictor, anchors, rows):
    """Also of logits that share a large part, and of more columns than tokens; not where a token is banned."""
    _, logits = logits_of(weight, rows)
    made = features(predictor, LogitsHiddenState(weight, anchors=anchors, dtype=torch.float64))
    wide = torch.cat([logits + 50, torch.zeros(rows, 3)], 1)
    for scores in (logits, wide):
        found = made.of_few(scores.numpy())
        torch.testing.assert_close(torch.from_numpy(found), made(logits), rtol=1e-9, atol=1e-9)
    logits[-1, 0] = -torch.inf
    assert made.of_few(logits.numpy()) is None


def test_few_rows_of_other_logits_take_the_long_way(weight, predictor):
    _, logits = logits_of(weight)
    for source in (
        LogitsHiddenState(weight, softcap=30.0, dtype=torch.float64),
        LogitsHiddenState(weight, scale=0.5, dtype=torch.float64),
        LogitsHiddenState(weight, bias=torch.ones(VOCAB), dtype=torch.float64),
        LogitsHiddenState(weight),
    ):
        assert features(predictor, source).of_few(logits.numpy()) is None
