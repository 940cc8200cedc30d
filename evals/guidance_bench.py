"""What steering costs beside the decode step, method by method: behind ``budgetctl bench guidance``.

A step is timed as it comes in a generation: rows one token longer than the step before. On the CPU each step is timed,
on CUDA runs of steps between two synchronisations; medians are given.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch

from budgetctl.controller import BudgetController
from budgetctl.evals.dict_budgets import DictBudgets
from budgetctl.evals.guidance_subjects import (
    CLOSE,
    DELIMITERS,
    OPEN,
    Subject,
    compiled_decode_step,
    decode_step,
)
from budgetctl.evals.published_predictor import PublishedPredictor
from budgetctl.forecast import LengthForecast
from budgetctl.guided_step import CANDIDATES
from budgetctl.kernels import reference
from budgetctl.kernels.candidates import top_candidates
from budgetctl.kernels.gamma_guidance import gamma_guidance
from budgetctl.kernels.log_gamma_cdf import log_gamma_cdf
from budgetctl.kernels.row_state import Action, pack_rows

#: The published predictor evaluates a Gamma CDF for every logit; beyond so many it is left out on the CPU.
MOST_LOGITS = 1 << 23
#: Steps between two synchronisations on CUDA.
RUN = 16
Step = Callable[[int], object]


@dataclass(frozen=True)
class Timing:
    """One method on one subject: median milliseconds of a step; ``step_ms`` of the model's decode step alone, None
    where there is no model."""

    subject: str
    method: str
    batch: int
    vocab: int
    thinking_tokens: int
    candidates: int
    ms: float
    step_ms: float | None

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


class GuidedRows(NamedTuple):
    """What guidance is told of its rows, in a controller by the state of the thought: [B] ``action`` and ``left``, the
    tokens left; [B, 1] ``closing`` ids."""

    action: torch.Tensor
    left: torch.Tensor
    closing: torch.Tensor

    @classmethod
    def of(cls, left: torch.Tensor) -> GuidedRows:
        """All of them thinking, with ``left`` [B] tokens left."""
        return cls(torch.full_like(left, Action.GUIDE), left, torch.full_like(left, CLOSE)[:, None])


def guide(
    forecast: LengthForecast, scores: torch.Tensor, rows: GuidedRows, k: int, tail: str = "exact"
) -> torch.Tensor:
    """Guided logits [B, V] from logits [B, V]: recovery of the state, likely tokens, row state, and the guidance of the
    device (the kernel on CUDA)."""
    return _guide(gamma_guidance, forecast, scores, rows, k, tail)


def guide_by_reference(
    forecast: LengthForecast, scores: torch.Tensor, rows: GuidedRows, k: int
) -> torch.Tensor:
    """The same in plain PyTorch on any device."""
    return _guide(reference.gamma_guidance, forecast, scores, rows, k, "exact")


def _guide(
    function: Any, forecast: LengthForecast, scores: torch.Tensor, rows: GuidedRows, k: int, tail: str
) -> torch.Tensor:
    outlook = forecast.outlook(scores, own_logits=True)
    top, ids = top_candidates(scores, min(k, scores.shape[1]))
    state = pack_rows(rows.action, rows.left, rows.closing, strength=2.0)
    guided: torch.Tensor = function(scores, outlook.features, forecast.head, top, ids, state, tail=tail)[0]
    return guided


def published(
    predictor: PublishedPredictor, states: torch.Tensor, scores: torch.Tensor, left: torch.Tensor
) -> torch.Tensor:
    """Guided logits [B, V]: the published predictor on all layers' states, log P for the whole vocabulary."""
    concentration, rate = predictor(states)
    return scores + log_gamma_cdf(concentration, rate, (left + 2).log()[:, None].to(rate.dtype))


def methods(subject: Subject, batch: int, thinking_tokens: int, steps: int, k: int) -> dict[str, Step]:
    """The steps to time by method; step ``i`` comes after ``thinking_tokens + i`` tokens of a thought."""
    scores, device = subject.logits(batch), subject.device
    ids = subject.rows(batch, thinking_tokens + steps)
    last = ids.tolist()
    budget = 2 * (thinking_tokens + steps)
    left = torch.full((batch,), budget // 2, device=device)
    rows = GuidedRows.of(left)
    first = 3 + thinking_tokens
    common: dict[str, Any] = {"thinking_budget": budget, "prompt_length": 3}
    cut = BudgetController(DELIMITERS, **common)
    common |= {"forecast": subject.forecast, "boundaries": subject.boundaries, "max_new_tokens": 2 * budget}
    # As `install` puts it: before all other processors.
    ours, by_lines = (BudgetController(DELIMITERS, guided_steps=g, **common) for g in ("every", "line"))
    ours.first = by_lines.first = True
    forecast = subject.forecast
    fast = torch.compile(lambda scores, rows: guide(forecast, scores, rows, k), dynamic=False)
    dictionaries = DictBudgets([budget] * batch, (OPEN,), (CLOSE,))
    found: dict[str, Step] = {
        "hard cut": lambda i: cut(ids[:, : first + i], scores),
        "dict state machine": lambda i: dictionaries.step([row[first + i - 1] for row in last], scores),
        "guidance": lambda i: guide(subject.forecast, scores, rows, k),
        "guidance, compiled": lambda i: fast(scores, rows),
        "controller": lambda i: ours(ids[:, : first + i], scores),
        "controller, by lines": lambda i: by_lines(ids[:, : first + i], scores),
    }
    if device.type == "cuda":
        found["guidance, reference"] = lambda i: guide_by_reference(subject.forecast, scores, rows, k)
        found["guidance, CUDA graph"] = graphed(lambda: guide(subject.forecast, scores, rows, k))
    if device.type == "cuda" or scores.numel() <= MOST_LOGITS:
        predictor = PublishedPredictor(subject.hidden, subject.vocab).eval().to(device)
        states = torch.randn(batch, subject.layers + 1, subject.hidden, device=device)
        found["published predictor"] = lambda i: published(predictor, states, scores, left)
    return found


def graphed(step: Callable[[], object]) -> Step:
    """``step`` captured once as a CUDA graph, and replayed."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return lambda i: graph.replay()


@torch.inference_mode()
def median_ms(step: Step, steps: int, device: torch.device, seconds: float) -> float:
    """Median milliseconds of a step, of at most ``steps`` and about ``seconds``; the first are not counted."""
    warm = min(3, steps - 1)
    for i in range(warm):
        step(i)
    found: list[float] = []
    run = RUN if device.type == "cuda" else 1
    until = time.perf_counter() + seconds
    for begin in range(warm, steps - run + 1, run):
        _wait(device)
        start = time.perf_counter()
        for i in range(begin, begin + run):
            step(i)
        _wait(device)
        now = time.perf_counter()
        found.append(1e3 * (now - start) / run)
        if now > until:
            break
    return statistics.median(found)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bench(
    subject: Subject,
    batches: list[int],
    *,
    thinking_tokens: int,
    steps: int,
    seconds: float,
    candidates: int = CANDIDATES,
    compiled: bool = False,
    only: tuple[str, ...] = (),
) -> Iterator[Timing]:
    """Timings of every method at every batch size.

    Args:
        subject: what to time on.
        batches: rows.
        thinking_tokens: of the thought before the first step.
        steps: most steps of a method.
        seconds: about how long a method is timed.
        candidates: k of the guidance alone; the controller has its own.
        compiled: compare with a compiled decode step on a static cache, not with an eager one.
        only: names of methods; all by default.
    """
    for batch in batches:
        step_ms = None
        if subject.model is not None:
            with torch.inference_mode():
                context = 3 + thinking_tokens
                if compiled:
                    model_step = compiled_decode_step(subject, batch, context, steps)
                else:
                    model_step = decode_step(subject, batch, context)
                step_ms = median_ms(lambda i: model_step(), steps, subject.device, seconds)  # noqa: B023
        with torch.inference_mode():
            todo = methods(subject, batch, thinking_tokens, steps, candidates)
        for name, step in todo.items():
            if only and name not in only:
                continue
            ms = median_ms(step, steps, subject.device, seconds)
            yield Timing(subject.name, name, batch, subject.vocab, thinking_tokens, candidates, ms, step_ms)
