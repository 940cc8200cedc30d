"""What became of each thought: tokens used, predicted and allowed, how it closed, what leaked into the answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from budgetctl.budget import NO_CAP
from budgetctl.controller import BudgetController
from budgetctl.limits import repeat_to
from budgetctl.segments import split_sequence


@dataclass(frozen=True)
class ThoughtReport:
    """One sequence's account, in tokens.

    ``close`` is ``natural`` (the model wanted it), ``steered`` (guidance tipped it), ``forced`` (the controller wrote
    it at a limit), ``early`` (the controller wrote it because the answer was there) or ``none`` (the thought was never
    closed, or there was none). ``thinking_budget`` is None without a limit, ``predicted_tokens`` is the natural length that effort is a share of, None without a predictor. ``leaked`` says that
    markers of a thought stand in the answer. ``guidance_strength`` is how strongly the thought was steered, 0 where it
    was not: without a limit or a predictor, or because it was asked for. ``note_tokens`` of the thinking tokens are notes about what
    is left.
    """

    thinking_tokens: int
    answer_tokens: int
    thinking_budget: int | None
    predicted_tokens: float | None
    close: str
    leaked: bool
    guidance_strength: float = 0.0
    note_tokens: int = 0

    def as_dict(self) -> dict[str, object]:
        """The fields as JSON values."""
        return asdict(self)

    def to_json(self) -> str:
        """One JSON object on one line."""
        return json.dumps(self.as_dict(), allow_nan=False)


def report_sequences(
    controller: BudgetController, sequences: torch.Tensor | Sequence[Sequence[int]], prompt_length: int
) -> list[ThoughtReport]:
    """Reports for generated ``sequences`` [B, T] (prompts included, ``prompt_length`` padded columns wide)."""
    ids = torch.as_tensor(sequences)
    kinds = controller.close_log.kinds(controller.greedy)
    budgets, predicted, keys = controller.account(ids, prompt_length)
    limited = limited_rows(controller, len(ids)).tolist()
    strength = controller.strength if controller.forecast is not None else 0.0
    line = controller.boundaries.line.cpu() if controller.boundaries is not None else None
    reports = []
    rows = zip(ids.tolist(), budgets, predicted, keys, limited, strict=True)
    for at, (row, budget, length, prefix_keys, has_limit) in enumerate(rows):
        parts = split_sequence(row, prompt_length, controller.delimiters)
        close = "none"
        if parts.close_span is not None:
            start, stop = parts.close_span
            steps = [kinds.get(prefix_keys[column], "natural") for column in range(start, stop)]
            close = next((kind for kind in steps if kind in ("forced", "early")), steps[0])
        notes = None if controller.notes is None else controller.notes.of(at, len(ids))
        reports.append(
            ThoughtReport(
                thinking_tokens=len(parts.thought),
                answer_tokens=len(parts.answer),
                thinking_budget=None if budget >= NO_CAP else budget,
                predicted_tokens=length,
                close=close,
                leaked=parts.stray_markers > 0,
                guidance_strength=strength if has_limit else 0.0,
                note_tokens=0 if notes is None else notes.tokens_in(parts.thought, line),
            )
        )
    return reports


def limited_rows(controller: BudgetController, rows: int) -> torch.Tensor:
    """[rows] bool on the CPU: whether anything was asked of the row that bounds its thought."""
    if controller.idle:
        return torch.zeros(rows, dtype=torch.bool)
    if controller.extension is not None or controller.early_exit is not None:
        return torch.ones(rows, dtype=torch.bool)
    cpu = torch.device("cpu")
    limited = controller.budgets.limited(rows, cpu) | repeat_to(controller.limits.reserved, rows, cpu)
    if controller.steps is not None:
        limited = limited | controller.steps.on(rows, cpu).planned
    return limited if controller.notes is None else limited | controller.notes.on(rows, cpu).noted
