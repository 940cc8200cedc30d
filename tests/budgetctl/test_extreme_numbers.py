"""Tiny temperatures and huge strengths keep scores finite and budgets held; numbers that no tensor holds are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from budgetctl.checks import MOST_TOKENS, check_tokens, shown
from budgetctl.closing import fold_end_of_sequence, probability_of, tempered_sum
from budgetctl.controller import BudgetController
from budgetctl.early_exit import EarlyExit
from budgetctl.errors import BudgetctlError, BudgetError
from budgetctl.extension import Extension
from budgetctl.sampling import SeededSampler

OPEN, CLOSE, EOS, ROWS = 10, 11, 1, 8
HUGE = [2**63, 10**30, 10**400, 10**5000]
TEMPERATURES = [1e-30, 1e-6, 1.0, 1e20]


@pytest.mark.parametrize(
    "knobs", [{"thinking_budget": 6}, {"effort": "low"}, {"thinking_target": 8}], ids=str
)
@pytest.mark.parametrize("strength", [2.0, 1e300])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_what_is_sampled_is_a_distribution_and_the_budget_holds(
    knobs: dict[str, Any],
    strength: float,
    temperature: float,
    toy: Any,
    markers: Any,
    forecast: Any,
    boundaries: Any,
    prompts_of: Any,
    write: Any,
    count: Any,
) -> None:
    case = markers["spelled, template"]
    prompts = prompts_of(case, ROWS)
    width = prompts.shape[1]
    controller = BudgetController(
        case,
        forecast=forecast,
        boundaries=boundaries,
        prompt_length=width,
        guidance_strength=strength,
        temperature=[temperature] * ROWS,
        extension=Extension((5, 6), 1),
        **knobs,
    )

    def checked(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        single = scores.float()
        found = controller(ids, single)
        assert not found.isnan().any()
        assert not found.isposinf().any()
        torch.testing.assert_close((found / temperature).softmax(1).sum(1), torch.ones(ROWS))
        return found

    ids = write(toy, prompts, [checked, SeededSampler(range(ROWS), width, temperature)], 30)
    budgets, _, _ = controller.account(ids, width)
    for row, budget in zip(ids.tolist(), budgets, strict=True):
        seen = count(row, width, case)
        assert seen.used <= budget <= 30
        assert not seen.open


@given(
    st.lists(st.one_of(st.floats(-50, 50), st.just(-float("inf"))), min_size=1, max_size=6),
    st.floats(-30, 20),
)
def test_a_sum_at_a_temperature(logits: list[float], exponent: float) -> None:
    """T log sum exp(z / T): the highest logit, and at most T log n more."""
    temperature = 10.0**exponent
    scores = torch.tensor([logits])
    found, highest = float(tempered_sum(scores, temperature)), max(scores[0].tolist())
    if highest == -float("inf"):
        assert found == highest
        return
    most = temperature * torch.tensor(float(len(logits))).log().item()
    assert highest - 1e-5 <= found <= highest + most * (1 + 1e-5) + 1e-5


def test_folding_and_telling_probabilities_at_a_tiny_temperature() -> None:
    """Even logits that another processor has raised beyond what float32 holds once divided."""
    scores = torch.tensor([[1e9, 2e9, 1.5e9, 0.0]])
    folded = fold_end_of_sequence(scores, torch.tensor([True]), (2,), torch.tensor([0]), 1e-30)
    assert folded.tolist() == [[1.5e9, 2e9, -torch.inf, 0.0]]
    assert probability_of(scores, torch.tensor([[1, 2]]), 1e-30).tolist() == [1.0]
    assert probability_of(scores, torch.tensor([[0, 2]]), 1e-30).tolist() == [0.0]


KNOBS = (
    "thinking_budget",
    "min_thinking_tokens",
    "thinking_target",
    "answer_reserve",
    "max_new_tokens",
)


@pytest.mark.parametrize("value", HUGE, ids=["2**63", "10**30", "10**400", "10**5000"])
@pytest.mark.parametrize("knob", KNOBS)
def test_tokens_that_no_tensor_holds(knob: str, value: int, markers: Any) -> None:
    for asked in (value, [3, value]):
        with pytest.raises(BudgetError, match=f"^{knob}=.* below 2") as caught:
            BudgetController(markers["opened by the model"], **{knob: asked})
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", HUGE, ids=["2**63", "10**30", "10**400", "10**5000"])
def test_other_numbers_that_no_tensor_holds(value: int, markers: Any) -> None:
    case = markers["opened by the model"]
    tries = {
        "target_tolerance": lambda: BudgetController(case, thinking_target=5, target_tolerance=value),
        "effort": lambda: BudgetController(case, effort=value),
        "max_extensions": lambda: Extension((5,), value),
        "early_exit every": lambda: EarlyExit(every=value),  # type: ignore[arg-type]
        "early_exit window": lambda: EarlyExit(method="agreement", window=value),
        "early_exit probe_tokens": lambda: EarlyExit(probe_tokens=value),
        "early_exit threshold": lambda: EarlyExit(threshold=value),
        "seed": lambda: SeededSampler([value], 1),
    }
    if value > 10**308:
        tries["guidance_strength"] = lambda: BudgetController(case, guidance_strength=value)
    tries["temperature"] = lambda: BudgetController(case, thinking_budget=4, temperature=value * 10**20)
    for name, attempt in tries.items():
        with pytest.raises(BudgetctlError, match=f"^{name}") as caught:
            attempt()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-31, 1e21, float("nan"), float("inf"), "1", True, None])
def test_temperatures_that_are_none(value: Any, markers: Any) -> None:
    case = markers["opened by the model"]
    for asked in (value, [1.0, value]):
        with pytest.raises(BudgetError, match=r"^temperature=.*expected a number > 0"):
            BudgetController(case, thinking_budget=[4, 5], temperature=asked)
    BudgetController(case, temperature=value)  # nothing is asked of it, so that it does nothing


@pytest.mark.parametrize("value", [2**40 - 1, 2**40, 2**62, MOST_TOKENS])
def test_the_largest_numbers_are_no_limit(
    value: int, toy: Any, markers: Any, prompts_of: Any, write: Any
) -> None:
    case = markers["opened by the template"]
    prompts = prompts_of(case, ROWS)
    width = prompts.shape[1]

    def written(**knobs: Any) -> torch.Tensor:
        return write(toy, prompts, [BudgetController(case, prompt_length=width, **knobs)], 20)

    free = written(thinking_budget=10_000)
    assert torch.equal(written(thinking_budget=value), free)
    assert torch.equal(written(max_new_tokens=value, thinking_budget=value, answer_reserve=9), free)
    assert torch.equal(written(thinking_target=value, target_tolerance=value), free)
    never = written(min_thinking_tokens=value)
    assert not (never[:, width:] == CLOSE).any()
    assert torch.equal(written(thinking_target=value), never)


def test_what_a_message_shows_of_a_value() -> None:
    assert shown(10**30) == str(10**30)
    assert shown("x" * 500) == repr("x" * 500)[:80] + "..."
    assert shown(10**5000) == "int of thousands of digits"
    assert "\n" not in shown("a\nb")
    assert check_tokens(MOST_TOKENS, "n", "") == MOST_TOKENS
    assert check_tokens(None, "n", "") is None
