"""Notes how likely the close was at a step, from which a report tells natural closes from steered ones."""

from __future__ import annotations

import numpy as np
import torch

from budgetctl.closing import probability_of
from budgetctl.kernels.host_reads import array_of, may_look

#: A close of less than this share of the likeliest token's probability is drawn next to never.
SELDOM = 1e-4
#: Logits of which NumPy finds the highest at less than what calling PyTorch costs, and their types.
SMALL = 1 << 15
SMALL_DTYPES = frozenset({torch.float32, torch.float64})
#: What the log of closes takes.
CloseNote = tuple[torch.Tensor, ...]


def note_close(
    keys: torch.Tensor,
    before: torch.Tensor,
    after: torch.Tensor,
    closing_ids: torch.Tensor,
    forced: torch.Tensor,
    temperature: float | torch.Tensor,
    exits: torch.Tensor | None,
    *,
    greedy: bool,
) -> CloseNote:
    """What :meth:`~budgetctl.ledger.CloseLog.kinds` needs of one step, as its ``record`` takes it.

    Where a close has next to no probability, that of the likeliest token is taken for the sum over the vocabulary,
    which is most of the work; but not on devices that would have to be waited for to know.

    Args:
        keys: [B] int64, hash of the prefix and the request; 0 for rows of which nothing is noted.
        before: [B, V] logits before guidance.
        after: [B, V] logits after guidance.
        closing_ids: [B, c] int64, tokens that close, or go on closing, the thought.
        forced: [B] bool, the controller leaves one token.
        temperature: of the sampling that follows, a number or [B, 1].
        exits: [B] bool, by an early exit.
        greedy: the most likely token is taken, so that probabilities do not matter.
    """
    gap = _below_the_likeliest(before, closing_ids)
    if not greedy and not may_look(before.device):
        wanted, allowed = (probability_of(scores, closing_ids, temperature) for scores in (before, after))
    else:
        wanted, allowed = gap, _below_the_likeliest(after, closing_ids)
    if not greedy and may_look(before.device):
        warmth = temperature if isinstance(temperature, int | float) else temperature[:, 0]
        wanted, allowed = ((share / warmth).exp() for share in (wanted, allowed))
        rows = (torch.maximum(wanted, allowed) > SELDOM) & (keys != 0)
        if bool(rows.any()):
            at = rows.nonzero()[:, 0]
            warm = temperature if isinstance(temperature, int | float) else temperature[at]
            wanted[at] = probability_of(before[at], closing_ids[at], warm)
            allowed[at] = wanted[at] if after is before else probability_of(after[at], closing_ids[at], warm)
    early = () if exits is None else (exits,)
    return keys, wanted, allowed, gap >= 0, forced, *early


def _below_the_likeliest(scores: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """[B] logit of the likeliest of ``token_ids`` [B, c] less the row's highest, in ``scores`` [B, V]."""
    if may_look(scores.device) and scores.dtype in SMALL_DTYPES and scores.numel() <= SMALL:
        values, ids = array_of(scores), array_of(token_ids)
        closes = np.maximum.reduce(values[np.arange(len(ids))[:, None], ids], axis=1)
        with np.errstate(invalid="ignore"):
            return torch.from_numpy(closes - np.maximum.reduce(values, axis=1))
    return scores.gather(1, token_ids).amax(1) - scores.amax(1)
