"""Which step of its plan a thought is in, read from its tokens.

A step has begun where a line of the thought begins with one of its marks. The step of a prefix is the last one, by number,
that has begun: a step that is skipped is over, and one that is gone back to does not begin again.
"""

from __future__ import annotations

import torch

from budgetctl.on_device import constant
from budgetctl.plan.row_plans import PlanTensors, RowPlans
from budgetctl.prefix_hash import mix
from budgetctl.prefix_reader import Reading


def mark_hits(
    input_ids: torch.Tensor,
    thought_start: torch.Tensor,
    plans: PlanTensors,
    line: torch.Tensor,
    columns: int | None = None,
) -> torch.Tensor:
    """[B, Q, n] int64: the step that a mark of a plan begins, where the mark ends at that column, else 0.

    Args:
        input_ids: [B, T] int64.
        thought_start: [B] int64, column of the first thinking token.
        plans: of the rows.
        line: [V] bool, tokens that end a line.
        columns: n, how many of the last columns are asked about; None for all T.
    """
    rows, width = input_ids.shape
    count = width if columns is None else min(columns, width)
    last = torch.arange(width - count, width, device=input_ids.device)
    hits = (plans.mark_lengths > 0)[:, :, None].expand(-1, -1, count)
    for back in range(plans.marks.shape[2]):
        wanted = plans.marks[:, :, back, None]
        there = input_ids[:, (last - back).clamp(min=0)][:, None, :] == wanted
        hits = hits & (there | (wanted < 0))
    begin = last - plans.mark_lengths[:, :, None] + 1
    ended = line[input_ids]
    before = (begin - 1).clamp(min=0).flatten(1)
    fresh = ended.gather(1, before).view(rows, -1, count) | plans.breaks[:, :, None]
    start = thought_start[:, None, None]
    hits = hits & (begin >= start) & (fresh | (begin == start))
    return torch.where(hits, plans.mark_steps[:, :, None], 0)


def steps_begun(
    input_ids: torch.Tensor, thought_start: torch.Tensor, plans: PlanTensors, line: torch.Tensor
) -> torch.Tensor:
    """[B, T + 1] int64: number of the step (from 1) that each column belongs to, 0 where none has begun.

    The tokens of a mark belong to the step that it begins. Column T is the next token's. The first step of a plan whose
    first step has no mark begins with the thought.

    Args:
        input_ids, thought_start, plans, line: as :func:`mark_hits` has them.
    """
    width = input_ids.shape[1]
    hits = mark_hits(input_ids, thought_start, plans, line)
    columns = torch.arange(width, device=input_ids.device)
    begin = (columns - plans.mark_lengths[:, :, None] + 1).clamp(min=0)
    begun = torch.zeros(len(input_ids), width + 1, dtype=torch.int64, device=input_ids.device)
    begun = begun.scatter_reduce(1, begin.flatten(1), hits.flatten(1), "amax")
    return torch.maximum(begun.cummax(1).values, first_step(plans)[:, None])


def first_step(plans: PlanTensors) -> torch.Tensor:
    """[B] int64: 1 where the first step needs no mark to begin, else 0."""
    marked = (plans.mark_steps == 1) & (plans.mark_lengths > 0)
    return (plans.planned & ~marked.any(1)).to(torch.int64)


class StepReader:
    """The step of each row of a growing generation.

    On the CPU the reading of the step before is gone on with where the hashes of the rows say that they have grown by one
    token; everywhere else all tokens are read.

    Args:
        plans: of the call.
    """

    def __init__(self, plans: RowPlans) -> None:
        self._line = plans.line
        self._known: tuple[int, torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def read(self, input_ids: torch.Tensor, reading: Reading, plans: PlanTensors) -> torch.Tensor:
        """[B] int64: number of the step (from 1) that the next token of each row belongs to, 0 before the first.

        Args:
            input_ids: [B, T] int64.
            reading: of the same rows.
            plans: of the rows.
        """
        device, width = input_ids.device, input_ids.shape[1]
        if self._line.device != device:
            self._line = self._line.to(device)
        start, total = reading.state.thought_start, reading.total
        begun = None
        if device.type == "cpu" and self._known is not None and self._known[0] == width - 1:
            _, totals, starts, known = self._known
            last = mix(mix(constant((width,), device)) ^ input_ids[:, -1])
            # Nothing has begun in a row whose thought has not.
            same = (total - last == totals) if len(totals) == len(total) else torch.zeros(1, dtype=torch.bool)
            if bool(same.all()) and bool(((start == starts) | (starts >= width - 1)).all()):
                hits = mark_hits(input_ids, start, plans, self._line, columns=1)
                begun = torch.maximum(known, hits.amax((1, 2)))
        if begun is None:
            hits = mark_hits(input_ids, start, plans, self._line)
            begun = torch.maximum(hits.amax((1, 2)), first_step(plans))
        if device.type == "cpu":
            self._known = (width, total, start, begun)
        return begun
