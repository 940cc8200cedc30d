"""Effort, guidance and their options; what is refused when a controller is made."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from budgetctl.budget import EFFORT_FRACTIONS
from budgetctl.controller import BudgetController
from budgetctl.errors import BudgetError
from budgetctl.guided_step import guided_step_of_logits
from budgetctl.sampling import SeededSampler

ROWS = 12


@pytest.fixture(scope="session")
def batch(toy: Any, markers: Any, prompts_of: Any) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Prompt width, prefixes [B, T] in mid-thought (the first rows at its start or after a line), and their logits."""
    prompts = prompts_of(markers["opened by the template"], ROWS)
    generator = torch.Generator().manual_seed(3)
    thoughts = torch.randint(3, 7, (ROWS, 6), generator=generator)
    thoughts[2:6, -1] = 2
    ids = torch.cat([prompts, thoughts], 1)
    ids[:2] = torch.cat([torch.zeros(2, 6, dtype=torch.int64), prompts[:2]], 1)
    return prompts.shape[1], ids, toy.read(ids)


@pytest.fixture(scope="session")
def steer(batch: Any, markers: Any, forecast: Any, boundaries: Any) -> Any:
    """Scores of a controller on the batch."""

    def run(scores: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
        options = {"thinking_budget": 14, "boundaries": boundaries, **options}
        controller = BudgetController(markers["opened by the template"], forecast=forecast, **options)
        return controller(batch[1], batch[2] if scores is None else scores)

    return run


def changed(scores: torch.Tensor, base: torch.Tensor) -> list[int]:
    """Rows in which more than the close and the end of sequence moved."""
    others = [token for token in range(scores.shape[1]) if token not in (1, 11)]
    return (scores != base)[:, others].any(1).nonzero()[:, 0].tolist()


def test_guided_steps(batch: Any, steer: Any) -> None:
    base = batch[2]
    assert changed(steer(), base) == list(range(ROWS))
    assert changed(steer(guided_steps="line"), base) == [0, 1, 2, 3, 4, 5]
    assert changed(steer(guided_steps="first"), base) == [0, 1]
    every = steer()
    # Steps with nothing but guidance to do add up in another order.
    torch.testing.assert_close(steer(guided_steps="line")[:6], every[:6], rtol=1e-12, atol=1e-12)


def test_strength_zero_steers_nothing_and_more_steers_more(batch: Any, steer: Any, markers: Any) -> None:
    _, ids, base = batch
    plain = BudgetController(markers["opened by the template"], thinking_budget=14)(ids, base)
    assert torch.equal(steer(guidance_strength=0), plain)
    assert torch.equal(steer(guidance_strength=2.0), steer())  # the forecast's own default
    weak, strong = ((steer(guidance_strength=s) - base)[:, 3:7] for s in (1.0, 3.0))
    torch.testing.assert_close(strong, 3 * weak)
    assert weak.abs().max() > 0.1


def test_guidance_moves_the_sampled_distribution_alike_at_any_temperature(batch: Any, steer: Any) -> None:
    """What is sampled is softmax(scores / T): guidance multiplies its probabilities by the same factors at any T,
    as long as the same tokens are likely ones (which is told from that distribution)."""
    base = batch[2]
    temperatures = (0.94, 1.0, 1.06)
    others = base.clone()
    others[:, 11] = -torch.inf
    gaps = (others.amax(1, keepdim=True) - base)[:, :, None] / torch.tensor(temperatures)
    same = (gaps < 2.9957).all(2) | (gaps >= 2.9957).all(2)
    considered = gaps[:, 11] < 0.6931
    rows = (same | (torch.arange(18) == 11)).all(1) & (considered.all(1) | ~considered.any(1))
    assert rows.sum() >= 2
    ratios = [(steer(temperature=t)[rows] - base[rows])[:, 3:7] / t for t in temperatures]
    assert ratios[0].abs().max() > 0.1
    torch.testing.assert_close(ratios[0], ratios[1])
    torch.testing.assert_close(ratios[2], ratios[1])


def test_guidance_is_the_push_of_the_forecast(batch: Any, steer: Any, forecast: Any) -> None:
    """Differences between likely tokens are strength x differences of log P(L <= left), where much fits."""
    base = batch[2]
    left = torch.tensor([40] * 2 + [40 - 6] * (ROWS - 2))
    candidates = torch.arange(18).expand(ROWS, -1)
    fit, _ = forecast.fit(forecast.outlook(base), candidates, left)
    likely = base >= base.amax(1, keepdim=True) - 2
    likely[:, [1, 11]] = False
    hopeful = (fit * likely).amin(1) > -1
    assert hopeful.sum() >= 4
    moved = steer(thinking_budget=40) - base
    for row in hopeful.nonzero()[:, 0].tolist():
        tokens = likely[row].nonzero()[:, 0]
        expected = 2.0 * fit[row, tokens]
        got = moved[row, tokens]
        torch.testing.assert_close(got - got[0], expected - expected[0])


def test_effort_is_a_share_of_the_predicted_length(batch: Any, markers: Any, forecast: Any, toy: Any) -> None:
    width, ids, _ = batch
    levels = ["minimal", "low", "medium", "high", "xhigh", 0.1, 0.77, "max", "auto", "none", "low", "high"]
    caps = [None] * 10 + [3, 1000]
    controller = BudgetController(
        markers["opened by the template"],
        effort=levels,
        thinking_budget=caps,
        forecast=forecast,
        prompt_length=width,
    )
    starts = ids[:, :-6].clone()
    starts[:2] = ids[:2, 6:]
    at_start = toy.read(starts)
    controller(starts, at_start)
    predicted = forecast.natural_length(forecast.outlook(at_start))
    budgets, lengths, _ = controller.account(starts, width)
    torch.testing.assert_close(torch.tensor(lengths, dtype=torch.float64), predicted)
    for level, cap, length, budget in zip(levels, caps, predicted.tolist(), budgets, strict=True):
        fraction = EFFORT_FRACTIONS[level] if isinstance(level, str) else level
        share = max(round(fraction * length), 1) if 0 < fraction < float("inf") else 2**40
        if level == "none":
            share = 0
        assert budget == min(share, 2**40 if cap is None else cap), level
    assert len({budget for budget in budgets if budget < 2**40}) >= 6


def test_the_budget_stays_the_same_along_the_thought(
    batch: Any, markers: Any, forecast: Any, toy: Any, prompts_of: Any, write: Any, count: Any
) -> None:
    case = markers["opened by the template"]
    prompts = prompts_of(case, ROWS)
    width = prompts.shape[1]
    controller = BudgetController(case, effort="medium", forecast=forecast, prompt_length=width)
    ids = write(toy, prompts, [controller, SeededSampler(range(ROWS), width)], 30)
    first, lengths, _ = controller.account(prompts, width)
    for stop in (width + 1, width + 10, width + 30):
        assert controller.account(ids[:, :stop], width)[:2] == (first, lengths)
    used = [count(row, width, case).used for row in ids.tolist()]
    assert all(u <= budget for u, budget in zip(used, first, strict=True))
    # One that never saw the start derives a budget from where it is: still as much as is used, and a share of what comes.
    fresh = BudgetController(case, effort="medium", forecast=forecast, prompt_length=width)
    fresh(ids[:, : width + 3], toy.read(ids[:, : width + 3]))
    assert fresh.account(ids, width)[1] == [None] * ROWS


def test_a_placeholder_of_equal_logits_makes_no_prediction(
    markers: Any, forecast: Any, prompts_of: Any
) -> None:
    prompts = prompts_of(markers["opened by the template"], 3)
    controller = BudgetController(
        markers["opened by the template"], effort="low", forecast=forecast, prompt_length=prompts.shape[1]
    )
    controller(prompts, torch.zeros(3, 18, dtype=torch.float64))
    assert controller.account(prompts, prompts.shape[1])[1] == [None] * 3


class Fixed:
    """A forecast that finds every thought as likely as ``fit`` to end in time."""

    guidance_strength, dtype = 0.0, torch.float32

    def __init__(self, fit: float) -> None:
        self.log_fit = torch.tensor([fit]).log()

    def outlook(self, scores: torch.Tensor, own_logits: bool) -> object:
        return self

    def natural_length(self, outlook: object) -> torch.Tensor:
        return torch.tensor([100.0])

    def guide(self, scores: torch.Tensor, *_: object, interval: bool, out: Any = None) -> Any:
        return scores, self.log_fit


@pytest.mark.parametrize(("fit", "closed"), [(0.9, False), (0.51, False), (0.49, True), (0.01, True)])
def test_the_window_leaves_a_thought_that_will_end_by_itself(
    fit: float, closed: bool, markers: Any, boundaries: Any
) -> None:
    ids = torch.tensor([[7, 8, 9, 10, 2, *[5] * 18, 2]])
    options: Any = {"thinking_budget": 20, "boundaries": boundaries, "forecast": Fixed(fit)}
    controller = BudgetController(markers["opened by the template"], prompt_length=5, **options)
    assert bool(controller(ids, torch.randn(1, 18)).isfinite().sum() == 1) == closed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"effort": "low"}, "needs a length predictor"),
        ({"thinking_budget": [5, 3], "min_thinking_tokens": 4}, "more than the thinking budget of 3"),
        ({"effort": "none", "min_thinking_tokens": 1}, "more than the thinking budget of 0"),
        ({"min_thinking_tokens": -1}, "min_thinking_tokens=-1 is negative"),
        ({"guided_steps": "always"}, "unknown guided_steps 'always'"),
        ({"guidance_strength": -0.5}, "guidance_strength=-0.5: expected a number >= 0"),
        ({"guidance_strength": float("nan")}, "guidance_strength=nan"),
        ({"guidance_strength": True}, "guidance_strength=True"),
        ({"guidance_strength": "2"}, "guidance_strength='2'"),
        ({"max_new_tokens": 10, "answer_reserve": 10}, "answer_reserve=10"),
    ],
)
def test_refused(options: dict[str, Any], words: str, markers: Any) -> None:
    with pytest.raises(BudgetError, match=words) as caught:
        BudgetController(markers["opened by the template"], **options)
    assert "\n" not in str(caught.value)


def test_rows_that_no_budget_belongs_to(batch: Any, markers: Any) -> None:
    controller = BudgetController(markers["opened by the template"], thinking_budget=[1] * 5)
    with pytest.raises(BudgetError, match="5 budgets cannot be shared among 12 rows"):
        controller(batch[1], batch[2])


def test_compiled_guidance_is_the_same(forecast: Any, toy: Any, markers: Any, boundaries: Any) -> None:
    """In a thought that is steered, closed at the end of its budget, and answered."""
    fast = copy.copy(forecast)
    fast.compiled_step = torch.compile(guided_step_of_logits, backend="aot_eager")
    prompts = torch.tensor([[7, 8, 9, 10, 2], [5, 8, 9, 10, 2]])
    options: Any = {
        "thinking_budget": [9, 14],
        "prompt_length": 5,
        "boundaries": boundaries,
        "temperature": 0.7,
    }
    ids, steered = prompts, 0
    plain, compiled = (
        BudgetController(markers["opened by the template"], forecast=f, **options) for f in (forecast, fast)
    )
    for _ in range(20):
        scores = toy.read(ids)
        expected, found = plain(ids, scores), compiled(ids, scores)
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
        steered += int(not torch.equal(expected, scores))
        ids = torch.cat([ids, expected.argmax(1, keepdim=True)], 1)
    assert steered > 5
