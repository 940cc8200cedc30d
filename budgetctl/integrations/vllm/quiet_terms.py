"""What is told of quiet rows: by the controller, of how they stand, and to it, of what is to be done with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from budgetctl.integrations.vllm.history import Entry
from budgetctl.kernels.host_reads import array_of
from budgetctl.quiet_step import Warmth
from budgetctl.score_edits import PROBED

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class QuietRows:
    """Rows in the middle of their thoughts.

    Args:
        index: [B] int64, which rows of the logits they are, on the device; None for all of them in order.
        slots: [B] int64, on the device.
        known: the same as a list.
        warmth: what guidance acts on.
        left: B thinking tokens left.
    """

    index: torch.Tensor | None
    slots: torch.Tensor
    known: list[int]
    warmth: Warmth
    left: list[int]


@dataclass(frozen=True)
class QuietAnswers:
    """Rows in their answers that have tokens which may not follow.

    Args:
        requests: by their rows of the logits.
        rows: [n] int64, of the logits, one for each ban.
        tokens: [n] int64.
    """

    requests: dict[int, Entry]
    rows: Array
    tokens: Array

    def ban(self, logits: torch.Tensor) -> bool:
        """Ban in logits [B, V] on the CPU, in place. False, and nothing is banned, where other processors have left no other
        token of a row: then all has to be asked of the rows."""
        values = array_of(logits)
        came = values[self.rows, self.tokens]
        values[self.rows, self.tokens] = -np.inf
        alive = np.maximum.reduce(values[self.rows, :PROBED], axis=1) > -np.inf
        if np.count_nonzero(alive) < len(alive):
            alive = np.maximum.reduce(values[self.rows], axis=1) > -np.inf
            if np.count_nonzero(alive) < len(alive):
                values[self.rows, self.tokens] = came
                return False
        return True


@dataclass(frozen=True)
class QuietTerms:
    """What is known of rows after a step, arrays [B].

    Args:
        thoughts: bool, in a thought, and nothing but its length ends it while no marker comes.
        left: int64 thinking tokens left.
        used: int64 thinking tokens used.
        window: int64 length of the closing window.
        margin: int64 tokens left with which the row is near its end.
        inside: bool, a code fence is open.
        capped: int64 tokens that the budget alone leaves.
        room: int64 new tokens before the close has to begin.
        answers: bool, in an answer, where some markers may not follow.
        passes: bool, nothing is done with the row while no marker comes.
        finished: bool, nor after one.
    """

    thoughts: Array
    left: Array
    used: Array
    window: Array
    margin: Array
    inside: Array
    capped: Array
    room: Array
    answers: Array
    passes: Array
    finished: Array
