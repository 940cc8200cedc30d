"""The last tokens of a thought, row by row on the host: few rows of a step are there, and few logits of each change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from budgetctl.kernels.host_reads import array_of
from budgetctl.protect import MOST_BYTES, Spans
from budgetctl.score_edits import PROBED

Array = np.ndarray[Any, Any]


class ThoughtEnding:
    """Bans what could not be finished, outside a code fence, and writes the close where no token is left: what
    ``Spans.keep_whole`` and ``force_tokens`` do with such rows.

    Args:
        forced: the first token of a forced close.
        spans: what a close may not cut in two.
    """

    def __init__(self, forced: int, spans: Spans | None) -> None:
        self._forced = forced
        self._banned: dict[int, Array] = {}
        if spans is not None:
            size = len(spans.fence_end)
            for left in range(1, size + MOST_BYTES + 1):
                banned = torch.zeros_like(spans.fence)
                if spans.missing is not None:
                    banned |= (spans.missing >= left) & (spans.missing > 0)
                if left <= size:
                    banned |= spans.fence
                ids = array_of(banned.cpu().nonzero()[:, 0])
                if len(ids):
                    self._banned[left] = ids
        #: Tokens left from which on anything is done.
        self.most = max(self._banned, default=0)

    def __call__(self, scores: torch.Tensor, left: Sequence[int]) -> None:
        """Edit logits [B, V] in place, whose rows have so many tokens ``left``."""
        values = scores.numpy()
        for row, tokens in enumerate(left):
            if tokens == 0:
                values[row] = -np.inf
                values[row, self._forced] = 0.0
            elif tokens in self._banned:
                _ban(values[row], self._banned[tokens])


def _ban(row: Array, ids: Array) -> None:
    """Ban tokens in one row [V], unless other processors have left nothing else."""
    came = row[ids]
    row[ids] = -np.inf
    if row[:PROBED].max() == -np.inf and row.max() == -np.inf:
        row[ids] = came
