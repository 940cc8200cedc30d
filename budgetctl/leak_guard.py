"""What an answer may not hold: a second close, and a thought that there is no room for."""

from __future__ import annotations

import torch

from budgetctl.closing import next_marker_ids
from budgetctl.delimiters import ThinkingDelimiters, Tokens
from budgetctl.kernels.host_reads import may_look
from budgetctl.on_device import but_not, constant, may_hold
from budgetctl.score_edits import ban_tokens, dead_rows, unless_dead
from budgetctl.state import ThinkingState


def guard_answer(
    scores: torch.Tensor,
    input_ids: torch.Tensor,
    state: ThinkingState,
    delimiters: ThinkingDelimiters,
    rows: torch.Tensor,
    left: torch.Tensor,
    window: torch.Tensor,
    room: torch.Tensor,
    *,
    in_place: bool = False,
) -> torch.Tensor:
    """Scores [B, V] that cannot complete a marker which does not belong there.

    Where other processors have left nothing but a second close, it is let through; where they have left nothing but a
    thought that there is no room for, the sequence ends.

    Args:
        scores: [B, V] logits.
        input_ids: [B, T] int64.
        state: of the rows.
        delimiters: the markers.
        rows: [B] bool, rows with any limit that are outside a thought and not finished; the others pass.
        left: [B] int64 thinking tokens left.
        window: [B] int64 length of the closing window; a thought opened inside it would be closed at once.
        room: [B] int64 new tokens before the close of a thought must begin; no thought is opened after them.
        in_place: the ``scores`` may be written to.
    """
    answering, waiting = state.closed & rows, but_not(rows, state.started)
    edits: list[tuple[torch.Tensor, torch.Tensor]] = []
    if not delimiters.resumes_turn:  # there, every message of an answer ends as a thought does
        endings = beginnings(delimiters.end_variants, delimiters.close_refusal)
        closing_ids, completes = next_marker_ids(input_ids, state.answer_tokens, endings)
        edits.append((closing_ids, completes & answering[:, None]))
    openings = delimiters.all_opens
    if openings:
        # The marker of a second thought counts as thinking, and at least one token must follow it.
        marker = constant(tuple(map(len, openings)), scores.device)
        full = (left[:, None] <= marker) | (left <= window)[:, None]
        begun = beginnings(openings, delimiters.open_refusal)
        # What follows the refused token is written before the thought is open.
        rest = marker - constant(tuple(map(len, begun)), scores.device)
        late = room[:, None] <= rest
        banned = (answering[:, None] & full) | (waiting[:, None] & late)
        within = torch.where(state.started, state.answer_tokens, input_ids.shape[1])
        opening_ids, completes = next_marker_ids(input_ids, within, begun)
        edits.append((opening_ids, banned & completes))
    edits = [(ids, rows) for ids, rows in edits if may_hold(rows)]
    if not edits:
        return scores
    ids, rows = (torch.cat(parts, 1) if len(edits) > 1 else parts[0] for parts in zip(*edits, strict=True))
    in_place = in_place and may_look(scores.device)
    came = scores.gather(1, ids) if in_place else None
    guarded = ban_tokens(scores, ids, rows, in_place=in_place)
    dead = dead_rows(guarded)
    if not may_hold(dead):
        return guarded
    if came is not None:
        guarded = guarded.clone()
        scores.scatter_(1, ids, came)
    if not openings:
        return unless_dead(guarded, scores, dead)
    in_budget = scores
    if edits[-1][0] is opening_ids:
        in_budget = ban_tokens(scores, *edits[-1])
    ended = _ended(in_budget, scores, delimiters.eos_ids)
    return unless_dead(unless_dead(guarded, in_budget, dead), ended)


def _ended(banned: torch.Tensor, scores: torch.Tensor, eos_ids: Tokens) -> torch.Tensor:
    """``banned`` [B, V] with the end of sequence to take, in rows of ``scores`` [B, V] that came with any token."""
    known = tuple(token for token in eos_ids if token < scores.shape[1])
    if not known:
        return scores
    ended = banned.index_fill(1, constant(known, scores.device), 0.0)
    return torch.where(dead_rows(scores)[:, None], scores, ended)


def beginnings(markers: tuple[Tokens, ...], refusal: int) -> tuple[Tokens, ...]:
    """The markers up to the token that is refused: after it, a model could only go on with the marker."""
    if refusal < 0:
        return markers
    return tuple(marker[: refusal + 1] for marker in markers)
