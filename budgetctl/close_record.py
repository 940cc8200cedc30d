"""Notes how likely the close was at a step, from which a report tells natural closes from steered ones."""

from __future__ import annotations

import torch

from budgetctl.closing import probability_of
from budgetctl.ledger import CloseLog


def record_close(
    log: CloseLog,
    keys: torch.Tensor,
    before: torch.Tensor,
    after: torch.Tensor,
    closing_ids: torch.Tensor,
    forced: torch.Tensor,
    temperature: float | torch.Tensor,
    exits: torch.Tensor | None,
    *,
    greedy: bool,
) -> None:
    """Keep in ``log`` what :meth:`CloseLog.kinds` needs of one step.

    Args:
        log: of the request.
        keys: [B] int64, hash of the prefix and the request; 0 for rows of which nothing is noted.
        before: [B, V] logits before guidance.
        after: [B, V] logits after guidance.
        closing_ids: [B, c] int64, tokens that close, or go on closing, the thought.
        forced: [B] bool, the controller leaves one token.
        temperature: of the sampling that follows, a number or [B, 1].
        exits: [B] bool, by an early exit.
        greedy: the most likely token is taken, so that probabilities do not matter.
    """
    if greedy:
        wanted = allowed = torch.zeros_like(before[:, 0])
    else:
        wanted = probability_of(before, closing_ids, temperature)
        allowed = wanted if after is before else probability_of(after, closing_ids, temperature)
    preferred = before.gather(1, closing_ids).amax(1) >= before.amax(1)
    early = () if exits is None else (exits,)
    log.record(keys, wanted, allowed, preferred, forced, *early)
