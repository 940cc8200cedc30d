"""Steps in the middle of all thoughts, against the same steps when everything is asked of every row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from budgetctl.closing import Boundaries
from budgetctl.controller import BudgetController
from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.guided_step import CERTAIN, MOST_GAIN, certain
from tests.conftest import EOS, LINE, VOCAB, A, B

STEPS = 60


def both(
    controller: Callable[..., BudgetController], **knobs: Any
) -> tuple[BudgetController, BudgetController]:
    """The controller, and one that always asks all."""
    asked = controller(**knobs)
    asked.quiet_step = None
    return controller(**knobs), asked


@pytest.mark.parametrize(
    ("name", "rows"),
    [("opened by the template", 3), ("spelled, template", 12), ("closed by a phrase", 3), ("implicit", 12)],
)
@pytest.mark.parametrize(
    "knobs",
    [
        {"thinking_budget": [20, 50, 35], "temperature": [1.0, 0.7, 0.02]},
        {"effort": ["high", 0.5, "xhigh"], "thinking_budget": [None, 40, 30]},
        {"thinking_budget": 40, "min_thinking_tokens": [0, 9, 20], "temperature": [1.0, 0.3, 0.125]},
        {"thinking_target": 40, "target_tolerance": 20, "greedy": True, "temperature": 0.125},
    ],
)
def test_as_when_all_is_asked(
    name: str,
    knobs: dict[str, Any],
    rows: int,
    markers: dict[str, ThinkingDelimiters],
    prompts_of: Any,
    forecast: Any,
    boundaries: Boundaries,
) -> None:
    d = markers[name]
    ids = prompts_of(d, 3).repeat_interleave(rows // 3, 0)
    width = ids.shape[1]

    def controller(**given: Any) -> BudgetController:
        return BudgetController(
            d, forecast=forecast, boundaries=boundaries, prompt_length=width, max_new_tokens=90, **given
        )

    quiet, asked = both(controller, **knobs)
    taken, steps = [], quiet._quietly
    quiet._quietly = lambda *given: taken.append(1) or steps(*given)  # type: ignore[assignment, func-returns-value]
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        scores = 2 * torch.randn(rows, VOCAB, generator=generator, dtype=torch.float64)
        if step % 7 == 3:
            scores[:, 13:] = -torch.inf
        kept = scores.clone()
        found, expected = quiet(ids, scores), asked(ids, scores)
        assert torch.equal(scores, kept)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        words = torch.tensor([A, B, LINE if step % 4 == 0 else B])
        tokens = words[torch.randint(3, (rows,), generator=generator)]
        forced = expected.isneginf().sum(1) == VOCAB - 1
        ids = torch.cat([ids, torch.where(forced, expected.argmax(1), tokens)[:, None]], 1)
    assert len(taken) > 3
    reports = [c.close_log.kinds(greedy=c.greedy) for c in (quiet, asked)]
    assert reports[0] == reports[1]


def test_certain_is_what_guidance_cannot_change() -> None:
    apart = CERTAIN + 2.0 * MOST_GAIN
    top = torch.tensor([[0.0, apart * 0.999, -5.0], [0.0, -3.0, apart * 1.001]]).numpy()
    assert certain(top, 1.0, 2.0).tolist() == [False, True]
    assert certain(top, 0.5, 2.0).tolist() == [True, True]
    assert not certain(top[:, :1], 1.0, 2.0).size or certain(top[:, :1], 1.0, 2.0).all()


@pytest.mark.parametrize("rows", [2, 20])
def test_the_end_of_sequence_goes_to_the_close(rows: int, markers: Any, boundaries: Boundaries) -> None:
    """One row at a time for few rows, all together for more; a row without any token stays one."""
    d = markers["opened by the template"]
    controller = BudgetController(d, thinking_budget=500, boundaries=boundaries)
    assert controller.quiet_step is not None
    scores = torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(1))
    scores[0, [EOS, d.forced_end_ids[0]]] = -torch.inf
    temperature = torch.linspace(0.2, 1.5, rows)[:, None]
    warmth = controller.quiet_step.warmth(temperature, rows)
    found = controller.quiet_step(scores, [400] * rows, warmth, in_place=False)
    close, others = d.forced_end_ids[0], [t for t in range(VOCAB) if t not in (EOS, d.forced_end_ids[0])]
    both_of = torch.stack([scores[:, close], scores[:, EOS]], 1).double()
    expected = temperature[:, 0] * (both_of / temperature).logsumexp(1)
    torch.testing.assert_close(found[:, close].double(), expected)
    assert found[:, EOS].isneginf().all()
    assert torch.equal(found[:, others], scores[:, others])
