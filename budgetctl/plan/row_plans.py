"""The plans of a batch as tensors: when each step is to be over, how its beginning is told, what is written to begin it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from budgetctl.budget import NO_CAP
from budgetctl.closing import Boundaries
from budgetctl.errors import DelimiterError, PlanError
from budgetctl.limits import RowLimits, repeat_to
from budgetctl.on_device import to_device
from budgetctl.plan.plan import Plan, Step
from budgetctl.spelling import encode, spell

#: A total that shares are made for where it is not known in advance.
UNKNOWN_TOTAL = 10_000
#: How models begin a step at the start of a line.
STEP_MARKS = ("Step {n}:", "**Step {n}:", "### Step {n}:", "## Step {n}:", "Step {n}.")


class PlanTensors(NamedTuple):
    """Plans of B rows, of at most K steps; Q marks in all, of at most M tokens.

    Args:
        planned: [B] bool, the row has a plan.
        steps: [B] int64, its steps.
        ends: [B, K] float64, the part of the budget that is spent when a step is over; 1 from the last step on.
        limits: [B, K] float64, the part of the budget after which a step is ended in any case; 1 from the last step on.
        work: [B, K] float64, the part of all weights that is done when a step is over.
        marks: [B, Q, M] int64, tokens of the marks from the last one backwards, -1 after the first.
        mark_lengths: [B, Q] int64, 0 for none.
        mark_steps: [B, Q] int64, number (from 1) of the step that a mark begins.
        breaks: [B, Q] bool, the mark's first token begins a line by itself.
        headings: [B, K, H] int64, tokens of the headings.
        heading_lengths: [B, K] int64.
        mark_in_heading: [B, K] int64, tokens of the heading up to the end of its mark.
    """

    planned: torch.Tensor
    steps: torch.Tensor
    ends: torch.Tensor
    limits: torch.Tensor
    work: torch.Tensor
    marks: torch.Tensor
    mark_lengths: torch.Tensor
    mark_steps: torch.Tensor
    breaks: torch.Tensor
    headings: torch.Tensor
    heading_lengths: torch.Tensor
    mark_in_heading: torch.Tensor


@dataclass(frozen=True)
class SpelledStep:
    """A step in the tokens of a model: every spelling of its marks, its heading, and how much of that is its mark."""

    marks: tuple[tuple[int, ...], ...]
    breaks: tuple[bool, ...]
    heading: tuple[int, ...]
    mark_in_heading: int


@dataclass(frozen=True)
class RowPlans:
    """The plans of one call, spelled; one a request, or one for all.

    Args:
        plans: None for a request without one.
        spelled: the steps of each plan.
        newline: the token that ends a line before a heading, None where the tokenizer has no such token.
        line: [V] bool, tokens that end a line.
    """

    plans: tuple[Plan | None, ...]
    spelled: tuple[tuple[SpelledStep, ...], ...]
    newline: int | None
    line: torch.Tensor
    _made: dict[tuple[int, torch.device], PlanTensors] = field(
        default_factory=dict, repr=False, compare=False
    )

    @classmethod
    def build(
        cls,
        plans: Sequence[Plan | None],
        tokenizer: PreTrainedTokenizerBase,
        boundaries: Boundaries,
        known: dict[Plan, tuple[SpelledStep, ...]] | None = None,
    ) -> RowPlans:
        """Spell the plans; those that are ``known`` are taken from there, and the others added.

        Raises:
            PlanError: when there are none, or the tokenizer cannot write a heading.
        """
        if not plans:
            raise PlanError(
                "no plans: expected one for all prompts or one a prompt; leave plan unset for none"
            )
        newline = encode(tokenizer, "\n")
        single = len(newline) == 1 and bool(boundaries.line[newline[0]])
        known = {} if known is None else known
        for plan in plans:
            if plan is not None and plan not in known:
                known[plan] = tuple(
                    _spell_step(tokenizer, step, number) for number, step in enumerate(plan.steps, start=1)
                )
        return cls(
            tuple(plans),
            tuple(() if plan is None else known[plan] for plan in plans),
            newline[0] if single else None,
            boundaries.line,
        )

    def totals(self, limits: RowLimits) -> list[int]:
        """Thinking tokens of each plan's row that its shares are made for, as far as they are known in advance."""
        count = max(len(self.plans), len(limits.room))
        caps, room = limits.budgets.caps.tolist(), limits.room.tolist()
        whole = [min(caps[i % len(caps)], room[i % len(room)]) for i in range(count)]
        return [UNKNOWN_TOTAL if total >= NO_CAP else total for total in whole]

    def shares(self, limits: RowLimits) -> list[list[int]]:
        """Tokens of each step of each request's plan, [] without a plan.

        A step has room for its heading, the end of the line before it, and one more token, where the total is enough.
        """
        return [
            [] if plan is None else plan.shares(total, least)
            for plan, _, least, total in self._requests(limits)
        ]

    def _requests(
        self, limits: RowLimits
    ) -> list[tuple[Plan | None, tuple[SpelledStep, ...], list[int], int]]:
        """Plan, spelled steps, least tokens of each step, and total of each request."""
        found = []
        for request, total in enumerate(self.totals(limits)):
            at = request % len(self.plans)
            least = [len(step.heading) + 2 if step.heading else 0 for step in self.spelled[at]]
            found.append((self.plans[at], self.spelled[at], least, total))
        return found

    def on(self, rows: int, device: torch.device, limits: RowLimits) -> PlanTensors:
        """The plans of ``rows`` rows, each repeated for the beams or samples of its request; made once a device.

        Raises:
            BudgetError: when ``rows`` is no multiple of the requests.
        """
        made = self._made.get((rows, device))
        if made is None:
            with torch.inference_mode(False):
                parts = self._tensors(limits)
                at = repeat_to(torch.arange(len(parts.steps)), rows, torch.device("cpu"))
                made = PlanTensors(*(to_device(part[at], device) for part in parts))
            self._made[rows, device] = made
        return made

    def _tensors(self, limits: RowLimits) -> PlanTensors:
        requests = self._requests(limits)
        plans, spelled = [r[0] for r in requests], [r[1] for r in requests]
        most = max(1, *map(len, spelled))
        ends, latest, work = (torch.ones(len(plans), most, dtype=torch.float64) for _ in range(3))
        for row, (plan, _, least, total) in enumerate(requests):
            if plan is not None:
                count = len(plan.steps)
                ends[row, :count] = _cumulative(plan.shares(total, least))
                latest[row, :count] = torch.tensor(plan.limits(total, least)).double() / max(total, 1)
                work[row, :count] = _cumulative([step.weight for step in plan.steps])
        marks = [
            [
                (number, mark, starts)
                for number, step in enumerate(steps, start=1)
                for mark, starts in zip(step.marks, step.breaks, strict=True)
            ]
            for steps in spelled
        ]
        return PlanTensors(
            planned=torch.tensor([plan is not None for plan in plans]),
            steps=torch.tensor([len(steps) for steps in spelled]),
            ends=ends,
            limits=latest,
            work=work,
            marks=_padded([[mark[::-1] for _, mark, _ in row] for row in marks], -1),
            mark_lengths=_table([[len(mark) for _, mark, _ in row] for row in marks]),
            mark_steps=_table([[number for number, _, _ in row] for row in marks]),
            breaks=_table([[int(starts) for _, _, starts in row] for row in marks]).bool(),
            headings=_padded([[step.heading for step in steps] for steps in spelled], 0, most),
            heading_lengths=_table([[len(step.heading) for step in steps] for steps in spelled], most),
            mark_in_heading=_table([[step.mark_in_heading for step in steps] for steps in spelled], most),
        )


def _spell_step(tokenizer: PreTrainedTokenizerBase, step: Step, number: int) -> SpelledStep:
    heading = f"Step {number}: {step.text.strip()}\n" if step.heading is None else step.heading
    texts = step.marks
    if texts is None:
        usual = tuple(mark.format(n=number) for mark in STEP_MARKS)
        texts = usual if step.heading is None else tuple(filter(None, (step.heading.strip(),)))
    if heading.strip() and not any(heading.startswith(text) for text in texts):
        raise PlanError(
            f"step {step.text!r} has the heading {heading!r} and the marks {list(texts)}: expected a heading that begins with "
            "one of the marks, so that it can be told from the thought; add it to the marks"
        )
    try:
        spelled = {ids: _breaks(tokenizer, ids) for text in texts for ids in spell(tokenizer, text)}
    except DelimiterError as error:
        raise PlanError(f"step {step.text!r}: {error}") from None
    ids = encode(tokenizer, heading)
    inside = max((len(mark) for mark in spelled if ids[: len(mark)] == mark), default=0)
    if ids and not inside:  # merged with what follows the mark
        spelled[ids], inside = False, len(ids)
    return SpelledStep(tuple(spelled), tuple(spelled.values()), ids, inside)


def _breaks(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> bool:
    text = str(tokenizer.decode(list(ids)))
    return "\n" in text[: len(text) - len(text.lstrip())]


def _cumulative(parts: Sequence[float]) -> torch.Tensor:
    """[n] float64 of what is done after each part, the last exactly 1."""
    sums = torch.tensor(list(parts), dtype=torch.float64).cumsum(0)
    return sums / sums[-1].clamp(min=1e-300)


def _table(rows: Sequence[Sequence[int]], width: int = 1) -> torch.Tensor:
    width = max(width, *map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.int64)


def _padded(rows: Sequence[Sequence[Sequence[int]]], fill: int, count: int = 1) -> torch.Tensor:
    """[rows, most sequences of a row, most tokens of one], at least 1 each."""
    count = max(count, *map(len, rows))
    width = max(1, *(len(ids) for row in rows for ids in row), 1)
    blank = [fill] * width
    return torch.tensor(
        [[*([*ids, *blank[len(ids) :]] for ids in row), *[blank] * (count - len(row))] for row in rows],
        dtype=torch.int64,
    )
