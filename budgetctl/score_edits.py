"""Edits of single tokens' logits, row by row."""

from __future__ import annotations

import torch

from budgetctl.on_device import may_hold


def force_tokens(scores: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Scores [B, V] in which each row of ``rows`` [B] bool can only take its token of ``token_ids`` [B]."""
    if not may_hold(rows):
        return scores
    forced = torch.full_like(scores, -torch.inf).scatter_(1, token_ids[:, None], 0.0)
    return torch.where(rows[:, None], forced, scores)


def ban_tokens(scores: torch.Tensor, token_ids: torch.Tensor, banned: torch.Tensor) -> torch.Tensor:
    """Scores [B, V] with -inf at ``token_ids`` [B, c] where ``banned`` [B, c], whatever that leaves of the row."""
    if token_ids.shape[1] == 0 or not may_hold(banned):
        return scores
    current = scores.gather(1, token_ids)
    # Two spellings may share a token: the lowest value written wins.
    return scores.scatter_reduce(1, token_ids, torch.where(banned, -torch.inf, current), "amin")


def unless_dead(edited: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
    """``edited`` scores [B, V], those of ``otherwise`` in rows that have no token left."""
    if edited is otherwise:
        return edited
    dead = dead_rows(edited)
    return torch.where(dead[:, None], otherwise, edited) if may_hold(dead) else edited


def dead_rows(scores: torch.Tensor) -> torch.Tensor:
    """[B] bool: every token of the row is banned."""
    return scores.amax(1) == -torch.inf
