"""The controller inside ``generate`` of a tiny transformer that opens and closes thoughts at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList, Qwen3ForCausalLM

from budgetctl.closing import Boundaries
from budgetctl.controller import BudgetController
from budgetctl.forecast import LengthForecast
from budgetctl.predictors.hidden_state import LogitsHiddenState
from budgetctl.sampling import SeededSampler
from tests.conformance.model import DIGIT, EOS, LINE, PAD, STOP, VOCAB, short_thoughts, thinking_qwen3

CASES = (
    "opened by the model",
    "opened by the template",
    "spelled by three tokens",
    "spelled, template",
    "closed by a phrase",
    "implicit",
)
BUDGETS = (0, 1, 2, 5, 17, None)
ROWS, STEPS = 12, 28


@pytest.fixture(scope="module")
def model() -> Qwen3ForCausalLM:
    return thinking_qwen3()


@pytest.fixture(scope="module")
def steering(model: Qwen3ForCausalLM) -> dict[str, Any]:
    """A random forecast in float64 that predicts some six tokens, and line ends."""
    head = model.lm_head.weight.detach()
    source = LogitsHiddenState(head, anchors=torch.arange(VOCAB), dtype=torch.float64)
    line, sentence, digit = (torch.arange(VOCAB) == token for token in (LINE, STOP, DIGIT))
    return {
        "forecast": LengthForecast(short_thoughts(), source, head, 2.0, torch.float64),
        "boundaries": Boundaries(line, sentence, digit),
    }


@pytest.fixture(scope="module")
def generate(model: Qwen3ForCausalLM) -> Callable[..., torch.Tensor]:
    """Sequences [B, T] of ``generate``; ``seeds`` None decodes greedily or as ``how`` says."""

    def run(
        prompts: torch.Tensor, controller: BudgetController | None, seeds: Any = None, **how: Any
    ) -> torch.Tensor:
        processors = LogitsProcessorList([] if controller is None else [controller])
        if seeds is not None:
            processors.append(SeededSampler(seeds, prompts.shape[1]))
        how = {"do_sample": False, "max_new_tokens": STEPS, **how}
        mask = (prompts != PAD).long()
        return model.generate(prompts, attention_mask=mask, logits_processor=processors, **how)

    return run


@pytest.mark.parametrize("steer", [False, True])
@pytest.mark.parametrize("seeds", [None, range(ROWS)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("case", CASES)
def test_never_over(
    case: str,
    seeds: range | None,
    steer: bool,
    generate: Any,
    steering: Any,
    markers: Any,
    prompts_of: Any,
    count: Any,
) -> None:
    prompts = prompts_of(markers[case], ROWS)
    width = prompts.shape[1]
    budgets = list(BUDGETS) * (ROWS // len(BUDGETS))
    options = steering if steer else {}
    controller = BudgetController(markers[case], thinking_budget=budgets, prompt_length=width, **options)
    limited = generate(prompts, controller, seeds).tolist()
    free = generate(prompts, None, seeds).tolist()
    felt = 0
    for row, plain, budget in zip(limited, free, budgets, strict=True):
        counted = count(row, width, markers[case])
        if budget is None:  # to the token what the model writes alone, but for padding to the longest row
            size = min(len(row), len(plain))
            assert row[:size] == plain[:size]
            assert set(row[size:] + plain[size:]) <= {PAD}
            continue
        assert counted.used <= budget
        assert counted.stray == 0
        felt += count(plain, width, markers[case]).used > budget
    if seeds is not None:
        assert felt >= 3


@pytest.mark.parametrize("budget", [0, 1, 5])
@pytest.mark.parametrize("case", CASES)
def test_sampling_with_warpers_holds_the_budget(
    case: str, budget: int, generate: Any, steering: Any, markers: Any, prompts_of: Any, count: Any
) -> None:
    """Two samples a prompt, drawn by ``generate`` itself."""
    prompts = prompts_of(markers[case], 5)
    width = prompts.shape[1]
    budgets = [budget, 17, None, 3, budget]
    controller = BudgetController(
        markers[case], thinking_budget=budgets, prompt_length=width, temperature=1.3, **steering
    )
    torch.manual_seed(budget)
    how = {"do_sample": True, "temperature": 1.3, "top_k": 20, "top_p": 0.95, "num_return_sequences": 2}
    sequences = generate(prompts, controller, **how).tolist()
    assert len(sequences) == 10
    for row, limit in zip(sequences, [b for b in budgets for _ in range(2)], strict=True):
        assert limit is None or count(row, width, markers[case]).used <= limit


@pytest.mark.parametrize("how", [{"num_return_sequences": 2}, {"do_sample": True}])
@pytest.mark.parametrize("steer", [False, True])
@pytest.mark.parametrize("case", CASES[1:5])
def test_beams_hold_the_budget(
    case: str,
    steer: bool,
    how: dict[str, Any],
    generate: Any,
    steering: Any,
    markers: Any,
    prompts_of: Any,
    count: Any,
) -> None:
    prompts = prompts_of(markers[case], 4)
    width = prompts.shape[1]
    options = steering if steer else {}
    budgets = [0, 2, 5, 9]
    controller = BudgetController(markers[case], thinking_budget=budgets, prompt_length=width, **options)
    torch.manual_seed(0)
    sequences = generate(prompts, controller, num_beams=2, max_new_tokens=16, **how).tolist()
    each = len(sequences) // len(budgets)
    used = [count(row, width, markers[case]).used for row in sequences]
    assert all(u <= budgets[at // each] for at, u in enumerate(used))


@pytest.mark.parametrize("steer", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_close_is_complete_before_the_reserve(
    case: str, steer: bool, generate: Any, steering: Any, markers: Any, prompts_of: Any, count: Any
) -> None:
    prompts = prompts_of(markers[case], ROWS)
    width, reserve = prompts.shape[1], 12
    options = steering if steer else {}
    controller = BudgetController(
        markers[case],
        thinking_budget=[None, 30, 19] * (ROWS // 3),
        prompt_length=width,
        max_new_tokens=STEPS,
        answer_reserve=reserve,
        **options,
    )
    limited = generate(prompts, controller, range(ROWS)).tolist()
    free = generate(prompts, None, range(ROWS)).tolist()
    late = 0
    for row, plain in zip(limited, free, strict=True):
        at_reserve = count(row[: width + STEPS - reserve], width, markers[case])
        assert not at_reserve.open
        assert count(row, width, markers[case]).opens == at_reserve.opens
        late += count(plain[: width + STEPS - reserve], width, markers[case]).open
    assert late >= 2


@pytest.mark.parametrize("seeded", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_row_alone_gets_the_tokens_it_gets_in_a_padded_batch(
    case: str, seeded: bool, generate: Any, steering: Any, markers: Any, prompts_of: Any
) -> None:
    prompts = prompts_of(markers[case], 4)
    budgets: list[int | None] = [2, 9, None, 17]
    efforts = ["auto", "low", "auto", "high"]

    def answers(rows: list[int]) -> list[list[int]]:
        ids = prompts[rows]
        ids = ids[:, int((ids != PAD).int().argmax(1).min()) :]
        width = ids.shape[1]
        controller = BudgetController(
            markers[case],
            thinking_budget=[budgets[i] for i in rows],
            effort=[efforts[i] for i in rows],
            prompt_length=width,
            max_new_tokens=20,
            **steering,
        )
        written = generate(ids, controller, rows if seeded else None, max_new_tokens=20)[:, width:].tolist()
        return [row[: row.index(EOS)] if EOS in row else row for row in written]

    together = answers(list(range(4)))
    assert [answers([row])[0] for row in range(4)] == together


def test_speculation_writes_the_same_tokens(
    generate: Any, steering: Any, markers: Any, prompts_of: Any
) -> None:
    """Prompt lookup checks several tokens at once and goes back where they were wrong."""
    case = markers["opened by the template"]
    for budget in (2, 17):
        prompts = prompts_of(case, 1)
        width = prompts.shape[1]
        plain, looked_up = (
            generate(
                prompts,
                BudgetController(case, thinking_budget=budget, prompt_length=width, **steering),
                **how,
            )
            for how in ({}, {"prompt_lookup_num_tokens": 3})
        )
        assert plain.tolist() == looked_up.tolist()
