"""A compiled step is the step, and is compiled once for rows of any length."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from budgetctl import compiled_step, controller, predicted_caps
from budgetctl.compiled_step import covers, tail_of
from budgetctl.controller import BudgetController
from budgetctl.extension import Extension
from budgetctl.prefix_reader import read_rows
from tests.budgetctl.test_device_waits import with_spans
from tests.conftest import DIGIT, MARKERS, VOCAB, A, B, ToyModel
from tests.device_waits import DEVICE

ROWS = 4


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets compiled functions be traced, without generated code, which takes a minute, and covers the CPU. The counters
    of the compiler."""
    torch._dynamo.reset()

    @cache
    def compile_once(function: Any) -> Any:
        return torch.compile(function, backend="aot_eager", fullgraph=True)

    for module in (compiled_step, controller, predicted_caps):
        monkeypatch.setattr(module, "compile_once", compile_once)
    monkeypatch.setattr(controller, "covers", lambda device: True)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    yield lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
    torch._dynamo.reset()


def test_where_the_host_may_look_guidance_alone_is_compiled() -> None:
    assert covers(DEVICE)
    assert not covers(torch.device("cpu"))


@pytest.mark.parametrize("case", MARKERS)
def test_the_rest_of_a_step_looks_at_the_tail_alone(
    case: str, toy: ToyModel, forecast: Any, boundaries: Any, prompts_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With markers half-written, in thoughts and answers, near the end and far from it."""
    markers, ends = MARKERS[case], with_spans(boundaries)
    prompts = prompts_of(markers, ROWS)
    options: Any = {"thinking_budget": [4, 9, 14, 30], "prompt_length": prompts.shape[1], "boundaries": ends}
    options |= {"max_new_tokens": 40, "min_thinking_tokens": 3}
    plain, cut = (BudgetController(markers, forecast=forecast, **options) for _ in range(2))
    whole = BudgetController._edit

    def on_tail(self: BudgetController, input_ids: torch.Tensor, *rest: Any) -> Any:
        return whole(self, tail_of(input_ids, markers, ends.spans), *rest)

    ids = prompts
    for _ in range(36):
        scores = toy.read(ids)
        expected = plain(ids, scores)
        with monkeypatch.context() as patched:
            patched.setattr(BudgetController, "_edit", on_tail)
            assert torch.equal(cut(ids, scores), expected)
        ids = torch.cat([ids, expected.argmax(1, keepdim=True)], 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "predicts", "options"),
    [
        ("opened by the template", True, {"thinking_budget": [4, 9, 14, 30]}),
        ("spelled, template", True, {"effort": ["low", 0.4, "high", "auto"], "temperature": 0.7}),
        ("closed by a phrase", False, {"thinking_budget": 9, "min_thinking_tokens": 3}),
        ("implicit", True, {"thinking_target": [5, 6, 8, 12]}),
        ("opened by the template", False, {"thinking_budget": 9, "extension": Extension((A, B), 2)}),
    ],
)
def test_a_compiled_step_is_the_step(
    traced: Any,
    case: str,
    predicts: bool,
    options: dict[str, Any],
    toy: ToyModel,
    forecast: Any,
    boundaries: Any,
    prompts_of: Any,
) -> None:
    """While rows grow and change places; nothing is compiled anew after the second step."""
    markers = MARKERS[case]
    prompts = prompts_of(markers, ROWS)
    plain, compiled = (
        BudgetController(
            markers,
            forecast=forecast if predicts else None,
            boundaries=with_spans(boundaries),
            prompt_length=prompts.shape[1],
            max_new_tokens=40,
            compiled=compiled,
            **options,
        )
        for compiled in (False, True)
    )
    ids, graphs = prompts, []
    for step in range(36):
        scores = toy.read(ids)
        expected, found = plain(ids, scores), compiled(ids, scores)
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
        graphs.append(traced())
        ids = torch.cat([ids, expected.argmax(1, keepdim=True)], 1)
        if step % 5 == 4 and len(compiled.limits.budgets.requests) == 1:
            ids = ids[torch.tensor([1, 0, 0, 3])]
    assert 0 < graphs[1] == graphs[-1] <= 4
    kinds = [one.close_log.kinds(greedy=False) for one in (plain, compiled)]
    for kept in kinds:
        kept.pop(0, None)  # of rows of which nothing is noted
    # What the CPU leaves out where a close has next to no probability is computed here, and comes to the same.
    assert kinds[0] == kinds[1] != {}


@pytest.mark.slow
def test_one_reading_for_rows_of_any_length(traced: Any, boundaries: Any) -> None:
    """And for prompts of any length, given as a number or one a row."""
    generator = torch.Generator().manual_seed(0)
    markers, spans = MARKERS["spelled, template"], with_spans(boundaries).spans
    for width in range(12, 80):
        ids = torch.randint(DIGIT, VOCAB, (ROWS, width), generator=generator)
        ids[:, 2:5] = torch.tensor((*markers.turn_start_ids, *markers.open_ids))
        for prompt in (5 + width % 3, torch.tensor([5, 6, 7, 8])):
            expected = read_rows(ids, markers, prompt, spans)
            found = compiled_step.read_compiled(ids, markers, prompt, spans)
            torch.testing.assert_close(vars(found.state), vars(expected.state), atol=0, rtol=0)
            for name in ("total", "start_key", "fence_marks"):
                assert torch.equal(getattr(found, name), getattr(expected, name))
    assert traced() <= 3
