"""Edits of single tokens' logits, row by row."""

from __future__ import annotations

import torch

from budgetctl.kernels.host_reads import may_look
from budgetctl.on_device import may_hold

#: Logits of a row that are looked at first to find one that is not banned.
PROBED = 256


def force_tokens(
    scores: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor, *, in_place: bool = False
) -> torch.Tensor:
    """Scores [B, V] in which each row of ``rows`` [B] bool can only take its token of ``token_ids`` [B]. With
    ``in_place`` the ``scores`` themselves may be written to."""
    if not may_hold(rows):
        return scores
    if may_look(scores.device):
        at = rows.nonzero()[:, 0]
        forced = scores if in_place else scores.clone()
        forced[at] = -torch.inf
        forced[at, token_ids[at]] = 0.0
        return forced
    forced = torch.full_like(scores, -torch.inf).scatter_(1, token_ids[:, None], 0.0)
    return torch.where(rows[:, None], forced, scores)


def ban_tokens(
    scores: torch.Tensor, token_ids: torch.Tensor, banned: torch.Tensor, *, in_place: bool = False
) -> torch.Tensor:
    """Scores [B, V] with -inf at ``token_ids`` [B, c] where ``banned`` [B, c], whatever that leaves of the row. With
    ``in_place`` the ``scores`` themselves are written to."""
    if token_ids.shape[1] == 0 or not may_hold(banned):
        return scores
    current = scores.gather(1, token_ids)
    # Two spellings may share a token: the lowest value written wins.
    edit = scores.scatter_reduce_ if in_place else scores.scatter_reduce
    return edit(1, token_ids, current.masked_fill(banned, -torch.inf), "amin")


def unless_dead(
    edited: torch.Tensor, otherwise: torch.Tensor, dead: torch.Tensor | None = None
) -> torch.Tensor:
    """``edited`` scores [B, V], those of ``otherwise`` in rows that have no token left, which are ``dead`` [B] bool where
    that is known."""
    if edited is otherwise:
        return edited
    dead = dead_rows(edited) if dead is None else dead
    return torch.where(dead[:, None], otherwise, edited) if may_hold(dead) else edited


def dead_rows(scores: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
    """[B] bool: every token of the row is banned, of scores [B, V], or of their ``rows`` [B] int64 alone."""
    if rows is not None:
        dead = scores[rows, :PROBED].amax(1) == -torch.inf
        return dead_rows(scores[rows]) if may_hold(dead) else dead
    if scores.shape[1] > PROBED and may_look(scores.device):
        dead = scores[:, :PROBED].amax(1) == -torch.inf
        if not may_hold(dead):
            return dead
    return scores.amax(1) == -torch.inf
