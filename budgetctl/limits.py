"""What each row of one call may spend, in tokens: budgets, minimum, target, and the room before the answer's reserve."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from budgetctl.budget import NO_CAP, RowBudgets, as_list, resolve_reserve
from budgetctl.checks import check_tokens, shown
from budgetctl.errors import BudgetError
from budgetctl.on_device import to_device
from budgetctl.prefix_hash import mix

#: Share of a thinking target that is its tolerance when none is given.
TARGET_TOLERANCE = 0.1


class RowTensors(NamedTuple):
    """The limits of the rows of a batch, [B] each: ``caps`` int64 tokens, ``fractions`` float32 of the predicted length,
    ``limited`` bool (anything was asked for that row), ``minimum`` and ``room`` int64 tokens, ``target`` bool, and
    ``salt`` int64, which tells requests with one prompt and different limits apart."""

    caps: torch.Tensor
    fractions: torch.Tensor
    limited: torch.Tensor
    minimum: torch.Tensor
    room: torch.Tensor
    target: torch.Tensor
    salt: torch.Tensor


@dataclass(frozen=True)
class RowLimits:
    """Constants of the requests of one call. The tensors have one value a request, or one for all.

    Args:
        budgets: effort and thinking budget.
        minimum: [R] int64, tokens before which the thought is not closed.
        room: [R] int64, new tokens before the close must begin, ``NO_CAP`` without ``max_new_tokens``.
        reserved: [R] bool, an answer reserve was asked for, which limits the row whatever its effort.
        has_room: whether any request has ``max_new_tokens``.
        has_minimum: whether any request has a minimum.
        has_target: whether any request aims at a target.
        target: [R] bool, requests whose ``minimum`` and cap are the two ends of a target.
    """

    budgets: RowBudgets
    minimum: torch.Tensor
    room: torch.Tensor
    reserved: torch.Tensor
    target: torch.Tensor
    has_room: bool
    has_minimum: bool
    has_target: bool
    _made: dict[tuple[int, torch.device], RowTensors] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def build(
        cls,
        *,
        effort: object = None,
        thinking_budget: object = None,
        min_thinking_tokens: object = None,
        thinking_target: object = None,
        target_tolerance: object = None,
        max_new_tokens: object = None,
        answer_reserve: object = None,
        close_tokens: int = 1,
    ) -> RowLimits:
        """Validate the knobs together; each is one value for all requests, or a sequence with one a request.

        Args:
            close_tokens: length of a forced close.

        Raises:
            BudgetError: for values out of range, knobs that contradict each other, or sequences of different lengths.
        """
        knobs = {
            "effort": as_list(effort),
            "thinking_budget": as_list(thinking_budget),
            "min_thinking_tokens": as_list(min_thinking_tokens),
            "thinking_target": as_list(thinking_target),
            "target_tolerance": as_list(target_tolerance),
            "max_new_tokens": as_list(max_new_tokens),
            "answer_reserve": as_list(answer_reserve),
        }
        rows = _rows_of(knobs)
        efforts, caps, minima, targets, tolerances, lengths, reserves = (
            values * rows if len(values) == 1 else values for values in knobs.values()
        )
        aimed: list[bool] = []
        for row in range(rows):
            ends = _target_ends(targets[row], tolerances[row], efforts[row], caps[row], minima[row])
            aimed.append(ends is not None)
            if ends is not None:
                minima[row], caps[row] = ends
        budgets = RowBudgets.build(efforts, caps)
        low = [_minimum(value, request.cap) for value, request in zip(minima, budgets.requests, strict=True)]
        room, reserved = [], []
        for length, reserve in zip(lengths, reserves, strict=True):
            kept = resolve_reserve(reserve, length, close_tokens)
            room.append(NO_CAP if length is None else min(max(length - kept - close_tokens, 0), NO_CAP))
            reserved.append(reserve is not None and length is not None)
        return cls(
            budgets,
            torch.tensor(low),
            torch.tensor(room),
            torch.tensor(reserved),
            torch.tensor(aimed),
            has_room=any(length is not None for length in lengths),
            has_minimum=any(low),
            has_target=any(aimed),
        )

    def on(self, rows: int, device: torch.device) -> RowTensors:
        """The limits of ``rows`` rows, each repeated for the beams or samples of its request; made once a device.

        Raises:
            BudgetError: when ``rows`` is no multiple of the requests.
        """
        made = self._made.get((rows, device))
        if made is None:
            host = torch.device("cpu")
            with torch.inference_mode(False):
                caps, fractions = self.budgets.expanded(rows, host)
                parts = RowTensors(
                    caps,
                    fractions,
                    self.budgets.limited(rows, host) | repeat_to(self.reserved, rows, host),
                    repeat_to(self.minimum, rows, host),
                    repeat_to(self.room, rows, host),
                    repeat_to(self.target, rows, host),
                    mix(mix(caps) ^ fractions.view(torch.int32).to(torch.int64)),
                )
                made = RowTensors(*(to_device(part, device) for part in parts))
            self._made[rows, device] = made
        return made

    @property
    def idle(self) -> bool:
        """Whether nothing was asked for."""
        return self.budgets.unlimited and not bool(self.reserved.any()) and not self.has_minimum


def repeat_to(values: torch.Tensor, rows: int, device: torch.device) -> torch.Tensor:
    """[rows] of ``values`` [R], each repeated for the rows of its request.

    Raises:
        BudgetError: when ``rows`` is no multiple of R.
    """
    if rows % len(values):
        raise BudgetError(
            f"{len(values)} budgets cannot be shared among {rows} rows: expected a multiple; give one budget a prompt"
        )
    return to_device(values.repeat_interleave(rows // len(values)), device)


def _rows_of(knobs: dict[str, list[object]]) -> int:
    rows = max(map(len, knobs.values()))
    for name, values in knobs.items():
        if len(values) not in (1, rows):
            raise BudgetError(
                f"{name} has {len(values)} values and another knob {rows}: expected one value for all rows or one a "
                "row; give both the same length"
            )
    return rows


def _minimum(value: object, budget: int | None) -> int:
    minimum = check_tokens(value, "min_thinking_tokens", "leave it unset for no minimum") or 0
    if budget is not None and minimum > budget:
        raise BudgetError(
            f"min_thinking_tokens={minimum} is more than the thinking budget of {budget}: "
            "expected a minimum inside the budget; lower one or raise the other"
        )
    return min(minimum, NO_CAP)


def _target_ends(
    target: object, tolerance: object, effort: object, cap: object, minimum: object
) -> tuple[int, int] | None:
    """The smallest and largest thought that a target allows, in tokens."""
    aim = check_tokens(target, "thinking_target", "leave it unset for no target")
    around = check_tokens(tolerance, "target_tolerance", "leave it unset for a tenth of the target")
    if aim is None:
        if around is not None:
            raise BudgetError(
                f"target_tolerance={around} without a target: expected thinking_target too; give it or drop the tolerance"
            )
        return None
    if aim == 0:
        raise BudgetError(
            "thinking_target=0 is no thought: expected at least 1 token; use thinking_budget=0 for no thinking"
        )
    others = {
        "effort": effort if effort != "auto" else None,
        "thinking_budget": cap,
        "min_thinking_tokens": minimum,
    }
    for name, value in others.items():
        if value is not None:
            raise BudgetError(
                f"thinking_target={aim} contradicts {name}={shown(value)}: expected only one, since a target sets both "
                "ends; drop one of the two"
            )
    if around is None:
        around = max(1, round(aim * TARGET_TOLERANCE))
    return min(max(aim - around, 0), NO_CAP), min(aim + around, NO_CAP)
