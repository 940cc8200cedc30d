"""``SeededSampler``: draws from softmax, and a draw depends on seed, position and token alone."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from budgetctl.errors import BudgetError
from budgetctl.sampling import SeededSampler


def draws(scores: torch.Tensor, seeds: range, position: int = 0, temperature: float = 1.0) -> torch.Tensor:
    """[B] tokens drawn under logits [V] or [B, V], one a seed."""
    ids = torch.zeros(len(seeds), 4 + position, dtype=torch.int64)
    rows = scores.expand(len(seeds), -1)
    return SeededSampler(seeds, 4, temperature)(ids, rows).argmax(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_softmax(temperature: float, dtype: torch.dtype) -> None:
    scores = torch.tensor([2.0, 0.0, 1.0, -1.0, -float("inf"), 0.5], dtype=dtype)
    expected = (scores.double() / temperature).softmax(0)
    # Over seeds at one position, and over positions of one seed.
    over_seeds = draws(scores, range(30_000), temperature=temperature)
    sampler_rows = torch.stack(
        [draws(scores, range(7, 8), position, temperature)[0] for position in range(3000)]
    )
    for tokens in (over_seeds, sampler_rows):
        found = torch.bincount(tokens, minlength=6).double()
        assert found[4] == 0
        keep = expected > 0
        wanted = expected[keep] * len(tokens)
        assert stats.chisquare(found[keep].numpy(), wanted.numpy()).pvalue > 1e-3


def test_one_draw_says_nothing_of_the_next() -> None:
    uniform = torch.zeros(4)
    for first, second in (
        (draws(uniform, range(20_000)), draws(uniform, range(1, 20_001))),  # the next seed
        (draws(uniform, range(20_000)), draws(uniform, range(20_000), position=1)),  # the next position
    ):
        table = torch.zeros(4, 4)
        table.index_put_((first, second), torch.ones(len(first)), accumulate=True)
        assert stats.chi2_contingency(table.numpy()).pvalue > 1e-3


def test_the_same_again_and_other_seeds_differ() -> None:
    scores = torch.randn(1, 50)
    assert torch.equal(draws(scores, range(40)), draws(scores, range(40)))
    assert not torch.equal(draws(scores, range(40)), draws(scores, range(40, 80)))


def test_a_draw_does_not_depend_on_other_rows_prefix_or_padding() -> None:
    scores = torch.randn(6, 30)
    ids = torch.randint(0, 30, (6, 9))
    together = SeededSampler(range(6), 5)(ids, scores)
    for row in range(6):
        wider = torch.cat([torch.zeros(1, 3, dtype=torch.int64), torch.randint(0, 30, (1, 9))], 1)
        alone = SeededSampler([row], 8)(wider, scores[row : row + 1])
        assert torch.equal(alone[0], together[row])


def test_two_methods_share_their_noise() -> None:
    """Where the logits agree but for one token, so do the draws, unless that token is drawn."""
    scores = torch.randn(1, 30)
    changed = scores.clone()
    changed[0, 3] += 1.0
    first, second = draws(scores, range(2000)), draws(changed, range(2000))
    assert bool(((first == second) | (second == 3)).all())
    assert (first != second).any()


def test_banned_tokens_stay_banned() -> None:
    scores = torch.full((1, 10), -torch.inf)
    scores[0, 4] = 0
    assert set(draws(scores, range(200)).tolist()) == {4}


def test_scores_keep_dtype_and_are_not_changed() -> None:
    for dtype in (torch.float32, torch.float64):
        scores = torch.randn(2, 10, dtype=dtype)
        kept = scores.clone()
        assert SeededSampler([1, 2], 3)(torch.zeros(2, 3, dtype=torch.int64), scores).dtype == dtype
        assert torch.equal(scores, kept)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_that_is_no_temperature(temperature: float) -> None:
    with pytest.raises(BudgetError, match="expected a number > 0"):
        SeededSampler([0], 1, temperature)


def test_seeds_that_do_not_fit_the_rows() -> None:
    with pytest.raises(BudgetError, match="3 seeds for 2 rows"):
        SeededSampler([1, 2, 3], 1)(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 5))


def test_noise_goes_on_from_an_offset() -> None:
    scores = torch.randn(3, 30)
    rows = [
        SeededSampler([7], 4)(torch.zeros(1, 4 + at, dtype=torch.int64), scores[at : at + 1])
        for at in range(3)
    ]
    together = SeededSampler([7, 7, 7], 9, offsets=[0, 1, 2])(torch.zeros(3, 9, dtype=torch.int64), scores)
    assert torch.equal(together, torch.cat(rows))
    with pytest.raises(BudgetError, match="2 offsets for 3 seeds"):
        SeededSampler([1, 2, 3], 1, offsets=[0, 1])
