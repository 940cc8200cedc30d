"""What a finished thought has spent on the steps of its plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.limits import RowLimits
from budgetctl.plan.row_plans import RowPlans
from budgetctl.plan.step_reader import steps_begun
from budgetctl.segments import split_sequence
from budgetctl.state import thinking_state


@dataclass(frozen=True)
class StepUse:
    """One step of one thought, in tokens.

    ``used`` were written in it, its heading included; ``share`` was its own. It is ``inside`` when it was over before the
    shares of all steps up to it were spent: what one leaves over, the next may use. ``begun`` says that there was anything
    of it.
    """

    text: str
    used: int
    share: int
    inside: bool
    begun: bool

    def as_dict(self) -> dict[str, object]:
        """The fields as JSON values."""
        return asdict(self)


def step_use(
    plans: RowPlans,
    limits: RowLimits,
    sequences: torch.Tensor,
    prompt_length: int,
    delimiters: ThinkingDelimiters,
    totals: Sequence[int],
) -> list[list[StepUse]]:
    """The steps of each finished sequence, [] for one without a plan.

    Args:
        plans: one a request, or one for all; nothing need have been enforced.
        limits: of the requests.
        sequences: [B, T] int64 on the CPU, prompts included.
        prompt_length: padded width of the prompts.
        delimiters: the markers of the thought.
        totals: B thinking budgets in tokens, which the shares are of.
    """
    tensors = plans.on(len(sequences), sequences.device, limits)
    start = thinking_state(sequences, delimiters, prompt_length=prompt_length).thought_start
    begun = steps_begun(sequences, start, tensors, plans.line)
    repeats = len(sequences) // len(plans.plans)
    uses: list[list[StepUse]] = []
    for row, ids in enumerate(sequences.tolist()):
        plan = plans.plans[row // repeats]
        if plan is None:
            uses.append([])
            continue
        close = split_sequence(ids, prompt_length, delimiters).close_span
        numbers = begun[row, int(start[row]) : len(ids) if close is None else close[0]]
        over = (tensors.ends[row] * totals[row]).round().long().tolist()
        uses.append(
            [
                StepUse(
                    text=step.text,
                    used=int((numbers == number).sum()),
                    share=over[number - 1] - (over[number - 2] if number > 1 else 0),
                    inside=int((numbers <= number).sum()) <= over[number - 1],
                    begun=bool((numbers == number).any()),
                )
                for number, step in enumerate(plan.steps, start=1)
            ]
        )
    return uses
