"""BRPO against its formulas (arXiv 2505.13438), and its baseline on a bandit whose every outcome is enumerated."""

from __future__ import annotations

import itertools

import pytest
import torch

from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.errors import BudgetError
from budgetctl.training.brpo import (
    BRPO,
    group_baseline,
    prior_weights,
    progress_baseline,
    summary_advantages,
    thinking_advantages,
    thinking_returns,
)

MARKERS = ThinkingDelimiters((3,), ((4,),), (4,), eos_ids=(2,))


def test_priors() -> None:
    budgets = [2000, 4000, 6000, 8000]
    assert prior_weights("uniform", budgets).tolist() == [0.25] * 4
    assert prior_weights("linear", budgets).tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert prior_weights("base", budgets).tolist() == [0, 0, 0, 1]
    with pytest.raises(BudgetError, match="uniform, linear, base"):
        prior_weights("flat", budgets)


def test_thinking_advantages_are_the_papers_sums() -> None:
    torch.manual_seed(0)
    groups, thoughts, count = 2, 3, 4
    scores = torch.rand(groups, thoughts, count, dtype=torch.float64)
    prior = prior_weights("linear", [1, 2, 3, 4])
    got = {name: thinking_advantages(scores, prior, name) for name in ("brpo", "v1", "v2", "none")}
    for g, m, s in itertools.product(range(groups), range(thoughts), range(count)):
        returns = [sum(float(prior[j] * scores[g, i, j]) for j in range(s, count)) for i in range(thoughts)]
        weights = [2.0**j for j in range(s)]
        progress = sum(w * float(scores[g, m, j]) for j, w in enumerate(weights)) / (sum(weights) or 1)
        v1 = progress * float(prior[s:].sum())
        v2 = sum(returns[i] for i in range(thoughts) if i != m) / (thoughts - 1)
        expected = {"brpo": (s * v1 + (count - s) * v2) / count, "v1": v1, "v2": v2, "none": 0.0}
        for name, baseline in expected.items():
            assert float(got[name][g, m, s]) == pytest.approx(returns[m] - baseline), name
    with pytest.raises(BudgetError, match="brpo, v1, v2, none"):
        thinking_advantages(scores, prior, "grpo")


def test_baselines_do_not_see_what_they_are_compared_with() -> None:
    """V1 of a segment must not move with the scores from that segment on, V2 not with the thought's own."""
    torch.manual_seed(1)
    scores, prior = torch.rand(1, 3, 4, dtype=torch.float64), prior_weights("uniform", [1, 2, 3, 4])
    for s in range(4):
        changed = scores.clone()
        changed[0, 1, s:] += 1
        assert torch.equal(
            progress_baseline(changed, prior)[0, 1, s], progress_baseline(scores, prior)[0, 1, s]
        )
    changed = scores.clone()
    changed[0, 1] += 1
    before, after = (group_baseline(thinking_returns(x, prior)) for x in (scores, changed))
    torch.testing.assert_close(after[0, 1], before[0, 1])
    assert (after[0, 0] > before[0, 0]).all()


CHANCES = torch.tensor([0.4, 0.6, 0.5], dtype=torch.float64)


def right(actions: tuple[int, ...]) -> float:
    """Chance of a right answer after these segments of thought: the first decides most of it."""
    first, *later = actions
    return 0.05 + 0.75 * first + 0.08 * sum(later)


def trajectories() -> list[tuple[float, torch.Tensor, torch.Tensor]]:
    """(probability, scores [S], d log pi / d logit [S]) of every thought with one answer after each cut."""
    found = []
    for actions in itertools.product((0, 1), repeat=3):
        taken = torch.tensor(actions, dtype=torch.float64)
        chance = (taken * CHANCES + (1 - taken) * (1 - CHANCES)).prod()
        for scores in itertools.product((0.0, 1.0), repeat=3):
            p = float(chance)
            for j, score in enumerate(scores):
                q = right(actions[: j + 1])
                p *= q if score else 1 - q
            found.append((p, torch.tensor(scores, dtype=torch.float64), taken - CHANCES))
    return found


def estimates(prior: torch.Tensor, baseline: str) -> tuple[torch.Tensor, float]:
    """Exact mean [S] and total variance of the gradient estimate from two thoughts, all outcomes enumerated."""
    ways = trajectories()
    pairs = list(itertools.product(ways, repeat=2))
    weights = torch.tensor([a[0] * b[0] for a, b in pairs], dtype=torch.float64)
    scores = torch.stack([torch.stack([a[1], b[1]]) for a, b in pairs])
    slopes = torch.stack([torch.stack([a[2], b[2]]) for a, b in pairs])
    gradients = (thinking_advantages(scores, prior, baseline) * slopes).mean(1)
    mean = (weights[:, None] * gradients).sum(0)
    return mean, float((weights[:, None] * (gradients - mean) ** 2).sum())


def true_gradient(prior: torch.Tensor) -> torch.Tensor:
    logits = CHANCES.logit().requires_grad_()
    value = torch.zeros((), dtype=torch.float64)
    for actions in itertools.product((0, 1), repeat=3):
        taken = torch.tensor(actions, dtype=torch.float64)
        chance = (taken * logits.sigmoid() + (1 - taken) * (1 - logits.sigmoid())).prod()
        value = value + chance * sum(float(prior[j]) * right(actions[: j + 1]) for j in range(3))
    (gradient,) = torch.autograd.grad(value, logits)
    return gradient


@pytest.mark.parametrize("name", ["uniform", "linear"])
def test_baselines_leave_the_expected_gradient_and_lower_its_variance(name: str) -> None:
    prior = prior_weights(name, [1, 2, 3])
    expected = true_gradient(prior)
    spread = {}
    for baseline in ("brpo", "v1", "v2", "none"):
        mean, spread[baseline] = estimates(prior, baseline)
        torch.testing.assert_close(mean, expected, rtol=1e-10, atol=1e-12)
    # v2 is GRPO's baseline, the mean of the other rollouts of the prompt.
    assert spread["brpo"] < 0.9 * spread["v2"] < spread["v2"]
    assert spread["brpo"] < spread["none"]


def test_a_group_mean_with_the_rollout_itself_scales_the_gradient() -> None:
    """Why V2 leaves it out: with M thoughts the released baseline keeps (M - 1) / M of the gradient."""
    prior = torch.ones(1, dtype=torch.float64)
    returns = torch.tensor([[[1.0], [0.0]]], dtype=torch.float64)
    released = returns - returns.mean(1, keepdim=True)
    torch.testing.assert_close(released, 0.5 * thinking_advantages(returns, prior))


def test_sampled_gradients_agree_with_the_enumeration() -> None:
    """Monte-Carlo through the same functions: mean within five standard errors."""
    prior = prior_weights("uniform", [1, 2, 3])
    torch.manual_seed(0)
    count = 100_000
    taken = (torch.rand(count, 2, 3) < CHANCES).double()
    chances = torch.stack(
        [0.05 + 0.75 * taken[..., 0] + 0.08 * taken[..., 1 : j + 1].sum(-1) for j in range(3)], -1
    )
    scores = (torch.rand(count, 2, 3) < chances).double()
    gradients = (thinking_advantages(scores, prior) * (taken - CHANCES)).mean(1)
    error = gradients.std(0) / count**0.5
    assert ((gradients.mean(0) - true_gradient(prior)).abs() < 5 * error).all()


def test_summaries_are_compared_within_their_cut() -> None:
    scores = torch.tensor([[[[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]]])
    lengths = torch.tensor([[[2, 5, 5]]])  # the second and third cut lie beyond the thought's end
    got = summary_advantages(scores, lengths)
    torch.testing.assert_close(got, torch.tensor([[[[0.5, -0.5], [0.25, 0.25], [-0.75, 0.25]]]]))
    own = summary_advantages(scores, torch.tensor([[[2, 4, 5]]]))
    torch.testing.assert_close(own, torch.tensor([[[[0.5, -0.5], [0.0, 0.0], [-0.5, 0.5]]]]))


def test_a_lone_summary_is_compared_with_the_other_thoughts() -> None:
    scores = torch.tensor([[[[1.0]], [[0.0]], [[0.0]]]])
    got = summary_advantages(scores, torch.tensor([[[3], [2], [3]]]))
    torch.testing.assert_close(got.flatten(), torch.tensor([1.0, -0.5, -0.5]))


def test_one_budget_and_one_summary_are_grpo_without_its_scale() -> None:
    """Thought and answer share one advantage, r - mean of the others = M / (M - 1) (r - mean)."""
    torch.manual_seed(2)
    rewards = torch.rand(8)
    method = BRPO(MARKERS, 64, (48,), 1, 8)
    got = method.advantages(rewards, rewards, {"thinking_tokens": torch.arange(8)}, 4)
    groups = rewards.view(2, 4)
    expected = (4 / 3 * (groups - groups.mean(1, keepdim=True))).reshape(8, 1)
    torch.testing.assert_close(got, expected.expand(8, 2))


def test_rows_are_by_thought_then_budget_then_summary() -> None:
    method = BRPO(MARKERS, 64, (8, 16), 2, 8)
    rewards = torch.tensor([1.0, 0, 1, 1, 0, 0, 0, 1])  # one prompt, two thoughts
    lengths = torch.tensor([8, 8, 16, 16, 8, 8, 12, 12])
    got = method.advantages(rewards, rewards, {"thinking_tokens": lengths}, 8)
    scores = torch.tensor([[[0.5, 1.0], [0.0, 0.5]]])
    thinking = thinking_advantages(scores, torch.tensor([0.5, 0.5]))[0]
    torch.testing.assert_close(got[:, :2], thinking.repeat_interleave(4, 0))
    torch.testing.assert_close(got[:, 2], torch.tensor([0.5, -0.5, 0, 0, 0, 0, -0.5, 0.5]))
