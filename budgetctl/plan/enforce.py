"""Holding a thought to the shares of its steps: what is left of a step, and the next heading where it is time.

A step is to be over when the shares of all steps up to it are spent. So what an earlier step has left over is there for the
next one, without anything being counted. A model moves on by writing the mark of the next step. Where it does not, the next
heading is written for it in two cases. A step whose share is spent is over where the model itself considers to move on: at a
line end, if it gives the heading at least half the probability of the likeliest token. And it is over in any case when it
would take what is kept for the steps to come: at a line end shortly before, and at the latest then. The last step ends as
every thought does.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch.nn.functional import pad

from budgetctl.closing import Boundaries, closing_window
from budgetctl.limits import RowLimits
from budgetctl.on_device import may_hold
from budgetctl.plan.row_plans import PlanTensors, RowPlans
from budgetctl.plan.step_reader import StepReader
from budgetctl.prefix_reader import Reading
from budgetctl.score_edits import force_tokens

#: Of the likeliest token's probability, the part at which the model considers to move on.
MOVE_SHARE = 0.5


class StepNow(NamedTuple):
    """Where rows stand in their plans; [B] each.

    Args:
        number: int64, the step (from 1), 0 before the first.
        left: int64, thinking tokens of its share, negative where it has taken more; for the last step, and without a plan,
            those of the thought.
        most: int64, thinking tokens until it is ended in any case.
        later: float64, the part of the work that belongs to the steps after it.
        share: int64, its own tokens.
        active: bool, a step is to be begun after it.
        planned: bool, the row has a plan.
    """

    number: torch.Tensor
    left: torch.Tensor
    most: torch.Tensor
    later: torch.Tensor
    share: torch.Tensor
    active: torch.Tensor
    planned: torch.Tensor


class StepGuide:
    """The plans of one call at work.

    Args:
        plans: one a request, or one for all.
        limits: of the requests, whose budget is shared out.
    """

    def __init__(self, plans: RowPlans, limits: RowLimits) -> None:
        self.plans = plans
        self.limits = limits
        self._reader = StepReader(plans)

    def on(self, rows: int, device: torch.device) -> PlanTensors:
        """The plans of so many rows."""
        return self.plans.on(rows, device, self.limits)

    def now(self, input_ids: torch.Tensor, reading: Reading, left: torch.Tensor) -> StepNow:
        """Where the rows stand.

        Args:
            input_ids: [B, T] int64.
            reading: of the same rows.
            left: [B] int64, thinking tokens left of the whole thought.
        """
        plans = self.on(len(input_ids), input_ids.device)
        number = self._reader.read(input_ids, reading, plans)
        used = reading.state.used
        total = (used + left).double()
        at = (number - 1).clamp(min=0)[:, None]
        end = plans.ends.gather(1, at)[:, 0]
        before = torch.where(number > 1, plans.ends.gather(1, (at - 1).clamp(min=0))[:, 0], 0.0)
        done = plans.work.gather(1, at)[:, 0]
        begun = number > 0
        over = torch.where(begun, (end * total).round().long(), 0)
        latest = torch.where(begun, (plans.limits.gather(1, at)[:, 0] * total).round().long(), 0)
        active = plans.planned & (number < plans.steps)
        return StepNow(
            number=number,
            left=torch.where(active, torch.minimum(over - used, left), left),
            most=torch.where(active, torch.minimum(latest - used, left), left),
            later=torch.where(active & begun, 1 - done, 0.0),
            share=((end - before) * total).round().long(),
            active=active,
            planned=plans.planned,
        )

    def aim(self, now: StepNow, left: torch.Tensor, natural: torch.Tensor) -> torch.Tensor:
        """[B] int64: thinking tokens that guidance lets a thought take from here on.

        The step ends in time if all that is to come takes no more than what is left of the step, and the natural length of
        the steps after it. That binds where a step has less than its part of the work; elsewhere what is ``left`` does.

        Args:
            now: where the rows stand.
            left: [B] int64, thinking tokens left of the whole thought.
            natural: [B], predicted natural length of the whole thought in tokens.
        """
        later = (now.later * natural.double()).round().long()
        return torch.where(now.active, torch.minimum(left, (now.left + later).clamp(min=0)), left)

    def unbroken(self, now: StepNow, left: torch.Tensor) -> torch.Tensor:
        """[B] int64: tokens until the next heading, or the close, may cut in; ``left`` as above."""
        return torch.where(now.active & (now.most > 1), torch.minimum(left, now.most - 1), left)

    def headings(
        self,
        scores: torch.Tensor,
        own: torch.Tensor,
        input_ids: torch.Tensor,
        reading: Reading,
        now: StepNow,
        rows: torch.Tensor,
        left: torch.Tensor,
        boundaries: Boundaries,
        temperature: float | torch.Tensor,
    ) -> torch.Tensor:
        """Scores [B, V] in which a heading is written where one is due, and one that was begun is gone on with.

        A heading for which the thought has no room, with one more token after it, is not begun.

        Args:
            scores: [B, V] logits, with all else done.
            own: [B, V] the model's logits.
            input_ids: [B, T] int64.
            reading: of the same rows.
            now: where they stand.
            rows: [B] bool, rows inside a thought that may be written to.
            left: [B] int64, thinking tokens left of the whole thought.
            boundaries: line and sentence ends.
            temperature: of the sampling that follows, a number or [B, 1].
        """
        state = reading.state
        plans = self.on(len(input_ids), input_ids.device)
        rows = rows & plans.planned & (state.close_progress == 0)
        if not may_hold(rows):
            return scores
        fresh = boundaries.line[input_ids[:, -1]] | (state.used == 0)
        ended = fresh | boundaries.at_end(input_ids)
        # The heading of the step that is in its mark, or of the next.
        current, following = now.number.clamp(min=1) - 1, now.number.clamp(max=plans.headings.shape[1] - 1)
        written = self._written(input_ids, reading, plans, current, boundaries.line)
        length = plans.heading_lengths.gather(1, current[:, None])[:, 0]
        marked = plans.mark_in_heading.gather(1, current[:, None])[:, 0]
        unfinished = rows & (now.number > 0) & (written >= marked) & (written > 0) & (written < length)
        unfinished = unfinished & (left > length - written)
        token = self._token(plans, current, written)

        progress = self._written(input_ids, reading, plans, following, boundaries.line)
        size = plans.heading_lengths.gather(1, following[:, None])[:, 0]
        breaks = torch.zeros_like(fresh)
        if self.plans.newline is not None:
            breaks = ~fresh & (progress == 0)
        following_token = self._token(plans, following, progress)
        window = closing_window(now.share, None)
        spent = now.most <= breaks.to(now.most.dtype)
        near = (now.most <= window) & (ended | (progress > 0))
        considered = (own.gather(1, following_token[:, None]) - own.amax(1, keepdim=True)) / temperature
        late = (now.left <= window) & (fresh | (progress > 0)) & (considered[:, 0] >= math.log(MOVE_SHARE))
        due = rows & now.active & (spent | near | late) & (left > size - progress + breaks) & ~unfinished
        if self.plans.newline is not None:
            following_token = torch.where(breaks, self.plans.newline, following_token)
        return force_tokens(scores, unfinished | due, torch.where(due, following_token, token))

    def _token(self, plans: PlanTensors, step: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """[B] token number ``at`` [B] of the heading of ``step`` [B] (from 0)."""
        rows = torch.arange(len(step), device=step.device)
        return plans.headings[rows, step, at.clamp(max=plans.headings.shape[2] - 1)]

    def _written(
        self,
        input_ids: torch.Tensor,
        reading: Reading,
        plans: PlanTensors,
        step: torch.Tensor,
        line: torch.Tensor,
    ) -> torch.Tensor:
        """[B] int64: tokens of the heading of ``step`` [B] (from 0) that the row ends with, from a line's beginning on."""
        rows = torch.arange(len(step), device=step.device)
        heading, length = plans.headings[rows, step], plans.heading_lengths[rows, step]
        most = heading.shape[1]
        start, width = reading.state.thought_start, input_ids.shape[1]
        tail = pad(input_ids, (max(most + 1 - width, 0), 0), value=-1)[:, -most - 1 :]
        sizes = torch.arange(1, most + 1, device=step.device)
        places = sizes - 1
        # Row s of the index: the last s tokens, which the heading's first s are compared with.
        ends = tail[:, (most + 1 - sizes[:, None] + places).clamp(max=most)]
        same = ((ends == heading[:, None, :]) | (places >= sizes[:, None])).all(2)
        before = tail[:, most - sizes]
        fresh = (line[before.clamp(min=0)] & (before >= 0)) | (start[:, None] == width - sizes)
        there = same & fresh & (sizes <= length[:, None]) & (start[:, None] <= width - sizes)
        return torch.where(there, sizes, 0).amax(1)
