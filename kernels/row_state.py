"""What guidance needs to know of each row at a step, packed into one tensor; and the predictor's head as tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from budgetctl.errors import KernelError
from budgetctl.kernels.host_reads import array_of, may_look


class Action(IntEnum):
    """What is done with a row: its logits are left alone; left alone, but the state's log P is asked for; guided; or
    forced, so that ``forced_ids`` is the only token that can be taken."""

    LEAVE = 0
    EVALUATE = 1
    GUIDE = 2
    FORCE = 3


#: Columns of the packed rows; the tokens that close the thought follow from ``CLOSING`` on.
ACTION, LEFT, LOWER, TEMPERATURE, STRENGTH, FORCED, CLOSING = range(7)

#: Temperatures and strengths are taken as if they lay in these bounds, so that float32 holds what is computed of them.
#: Beyond, a distribution is greedy, uniform, or decided by guidance alone.
LEAST_TEMPERATURE, MOST_TEMPERATURE, MOST_STRENGTH = 1e-30, 1e20, 1e6


def pack_rows(
    action: torch.Tensor,
    left: torch.Tensor,
    closing_ids: torch.Tensor,
    *,
    strength: float | torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    lower: torch.Tensor | None = None,
    forced_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Row state [B, 6 + c]: float64, which holds token ids and lengths exactly (float32 on devices without it).

    Args:
        action: [B] integers, values of :class:`Action`.
        left: [B] thinking tokens left, the close not counted; below 0 counts as 0.
        closing_ids: [B, c] tokens that close (or go on closing) the thought, c >= 1; a token may stand there twice.
        strength: guidance strength s >= 0, a number or [B]; at most ``MOST_STRENGTH`` counts.
        temperature: of the sampling that follows, > 0, a number or [B]; ``LEAST_TEMPERATURE`` to ``MOST_TEMPERATURE``
            count.
        lower: [B] the thought is to be longer than this many more tokens and its close; -1 for no such aim.
        forced_ids: [B] the only token of a row that is forced.

    Raises:
        KernelError: without a closing token.
    """
    if closing_ids.dim() != 2 or closing_ids.shape[1] < 1:
        raise KernelError(
            f"closing_ids has shape {tuple(closing_ids.shape)}: expected [B, c] with at least one token a row"
        )
    if may_look(left.device):
        return _pack_on_host(action, left, closing_ids, strength, temperature, lower, forced_ids)
    work = torch.float32 if left.device.type == "mps" else torch.float64
    rows = torch.empty(len(left), CLOSING + closing_ids.shape[1], dtype=work, device=left.device)
    columns = {
        ACTION: action,
        LEFT: left,
        LOWER: -1 if lower is None else lower,
        TEMPERATURE: _bounded(temperature, LEAST_TEMPERATURE, MOST_TEMPERATURE),
        STRENGTH: _bounded(strength, 0.0, MOST_STRENGTH),
        FORCED: closing_ids[:, 0] if forced_ids is None else forced_ids,
    }
    for column, values in columns.items():
        rows[:, column] = values
    rows[:, CLOSING:] = closing_ids
    return rows


def _pack_on_host(
    action: torch.Tensor,
    left: torch.Tensor,
    closing_ids: torch.Tensor,
    strength: float | torch.Tensor,
    temperature: float | torch.Tensor,
    lower: torch.Tensor | None,
    forced_ids: torch.Tensor | None,
) -> torch.Tensor:
    """The same by NumPy, whose operations on few numbers cost less."""
    closing = array_of(closing_ids)
    rows = np.empty((len(closing), CLOSING + closing.shape[1]))
    rows[:, ACTION] = array_of(action)
    rows[:, LEFT] = array_of(left)
    rows[:, LOWER] = -1 if lower is None else array_of(lower)
    rows[:, TEMPERATURE] = _bounded(temperature, LEAST_TEMPERATURE, MOST_TEMPERATURE)
    rows[:, STRENGTH] = _bounded(strength, 0.0, MOST_STRENGTH)
    rows[:, FORCED] = closing[:, 0] if forced_ids is None else array_of(forced_ids)
    rows[:, CLOSING:] = closing
    return torch.from_numpy(rows)


def _bounded(values: float | torch.Tensor, least: float, most: float) -> float | torch.Tensor:
    if isinstance(values, torch.Tensor):
        return values.clamp(least, most)
    return min(max(values, least), most)


@dataclass(frozen=True)
class GuidanceHead:
    """The part of a length predictor that is evaluated for every candidate; floating point, on the logits' device.

    With features f = [p, q_a, q_r] of a row (``width`` pre-activations of the state's trunk, then a query of ``rank``
    numbers for the concentration and one for the rate),

        (concentration, rate)(v) = softplus(weight silu(p) + bias + (table_v . q_a, table_v . q_r)) + floor,

    and without the table's term for the state alone.

    Args:
        weight: [2, width].
        bias: [2].
        table: [V, rank], contiguous; one row a token.
        floor: least concentration and rate.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    table: torch.Tensor
    floor: float

    #: Pre-activations of the trunk.
    width: int = field(init=False)
    #: Numbers a token has in the table.
    rank: int = field(init=False)

    def __post_init__(self) -> None:
        # Made here, and not when first asked for, which would break a compiled graph.
        object.__setattr__(self, "width", self.weight.shape[1])
        object.__setattr__(self, "rank", self.table.shape[1])

    @cached_property
    def arrays(self) -> tuple[np.ndarray[Any, Any], ...]:
        """``weight`` transposed, ``bias`` and ``table`` as NumPy sees them, on the CPU; the same memory."""
        return array_of(self.weight).T, array_of(self.bias), array_of(self.table)

    def state_parameters(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(concentration, rate)``, [B] each, of the state for features [B, width + 2 rank]."""
        concentration, rate = (F.softplus(self._state(features)) + self.floor).unbind(1)
        return concentration, rate

    def parameters(
        self, features: torch.Tensor, candidate_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``(concentration, rate)``, [B, 1 + k] each: of the state, then of each candidate.

        Args:
            features: [B, width + 2 rank].
            candidate_ids: [B, k] int64.
        """
        state = self._state(features)[:, None, :]
        query = features[:, self.width :].unflatten(1, (2, self.rank))
        # [B, k, rank] x [B, rank, 2] -> [B, k, 2]
        moved = torch.baddbmm(state, self.table[candidate_ids], query.transpose(1, 2))
        concentration, rate = (F.softplus(torch.cat([state, moved], 1)) + self.floor).unbind(-1)
        return concentration, rate

    def _state(self, features: torch.Tensor) -> torch.Tensor:
        """[B, 2] before the softplus."""
        return torch.addmm(self.bias, F.silu(features[:, : self.width]), self.weight.T)
