"""How a thought is closed: which token closes it next, where it may be closed early, and the forced close."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.errors import DelimiterError
from budgetctl.kernels.host_reads import array_of, may_look
from budgetctl.on_device import all_true, but_not, constant, may_hold
from budgetctl.phrases import phrase_ids
from budgetctl.protect import Spans
from budgetctl.state import ThinkingState

#: The closing window opens when this share of the budget is left, at most ``WINDOW_TOKENS``.
WINDOW_SHARE = 0.1
WINDOW_TOKENS = 64
#: Inside the window a thought is closed at a boundary when it is less likely than this to end by itself in time.
WINDOW_FIT = 0.5

_SENTENCE_ENDS = (".", "!", "?", "\u3002", "\uff01", "\uff1f", "\u2026")  # also CJK marks and the ellipsis
_CLOSING_MARKS = "\"')]}*\u201d\u2019\u00bb"

#: What NumPy folds, and the lowest number of each.
_LEAST = {dtype: torch.finfo(dtype).min for dtype in (torch.float32, torch.float64)}


@dataclass(frozen=True)
class Boundaries:
    """What a token's text ends with, as bool tables [V]: a line, a sentence mark, a digit; and spans not to be cut."""

    line: torch.Tensor
    sentence: torch.Tensor
    digit: torch.Tensor
    spans: Spans | None = None
    #: [V] int8: 2 for a token that ends a line, 1 for one that ends a sentence, else 0.
    _ends: torch.Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ends = torch.where(self.line, 2, self.sentence.to(torch.int8))
        object.__setattr__(self, "_ends", ends.to(torch.int8))

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Boundaries:
        """Read every token's text once; ids without text end nothing."""
        known = min(vocab_size, len(tokenizer))
        texts = tokenizer.batch_decode([[i] for i in range(known)]) + [""] * (vocab_size - known)
        bare = [text.rstrip(_CLOSING_MARKS + " ") for text in texts]
        return cls(
            torch.tensor([text.rstrip(" ").endswith("\n") for text in texts]),
            torch.tensor([text.endswith(_SENTENCE_ENDS) for text in bare]),
            torch.tensor([text[-1:].isdigit() for text in texts]),
            Spans.from_tokenizer(tokenizer, texts[:known], vocab_size),
        )

    def to(self, device: torch.device) -> Boundaries:
        spans = None if self.spans is None else self.spans.to(device)
        return Boundaries(self.line.to(device), self.sentence.to(device), self.digit.to(device), spans)

    def at_end(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[B] bool: the row [B, T] ends a line, or a sentence (a full stop after a digit may go on as a decimal)."""
        last = input_ids[:, -1]
        before = input_ids[:, -2] if input_ids.shape[1] > 1 else last
        return self._ends[last] > self.digit[before]


def closing_window(caps: torch.Tensor, room: torch.Tensor | int | None) -> torch.Tensor:
    """[B] int64 length of the closing window in tokens.

    Args:
        caps: [B] int64 thinking budgets.
        room: [B] or one for all, new tokens before the close must begin; None for no such limit.
    """
    if isinstance(room, torch.Tensor) and may_look(caps.device):
        tokens = np.minimum(array_of(caps), array_of(room)).astype(np.float32)
        window = np.minimum(np.ceil(tokens * np.float32(WINDOW_SHARE)), WINDOW_TOKENS)
        return torch.from_numpy(window.astype(np.int64))
    whole = caps if room is None else caps.clamp(max=room)
    return (whole * WINDOW_SHARE).ceil().clamp(max=WINDOW_TOKENS).to(torch.int64)


def ends_early(
    boundaries: Boundaries,
    size: int,
    input_ids: torch.Tensor,
    state: ThinkingState,
    rows: torch.Tensor,
    state_fit: torch.Tensor | None,
    left: torch.Tensor,
    window: torch.Tensor,
) -> torch.Tensor:
    """[B] bool, of ``rows``: in the window, at a line or sentence end, and not likely to end by itself in time; or a
    close that was begun there and is half-written.

    Args:
        boundaries: where lines and sentences end.
        size: tokens of a forced close.
        input_ids: [B, T] int64.
        state: of the rows.
        rows: [B] bool, rows that may be closed.
        state_fit: [B] log probability that the thought ends in time, None where it is not known.
        left: [B] int64 thinking tokens left.
        window: [B] int64 length of the closing window.
    """
    near = rows & (left <= window)
    if not may_hold(near):
        return torch.zeros_like(rows)
    early = but_not(near, state.at_start) & boundaries.at_end(input_ids)
    if state_fit is not None:
        early = early & (state_fit.exp() < WINDOW_FIT)
    for back in range(1, min(size, input_ids.shape[1])):
        begun = rows & (state.close_progress >= back) & (state.used > back) & (left + back <= window)
        early = early | (begun & boundaries.at_end(input_ids[:, :-back]))
    return early


def next_marker_ids(
    input_ids: torch.Tensor, within: torch.Tensor, variants: tuple[tuple[int, ...], ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The token with which each spelling of a marker begins or goes on.

    Args:
        input_ids: [B, T] int64.
        within: [B] int64, how many of the row's last tokens a half-written marker may lie in.
        variants: the c token sequences that spell the marker.

    Returns:
        ``(ids, completes)``: [B, c] int64 next token of each variant, and [B, c] bool whether it completes the marker.
    """
    rows, device = input_ids.shape[0], input_ids.device
    if all(len(variant) == 1 for variant in variants):
        only = constant(tuple(variant[0] for variant in variants), device).expand(rows, -1)
        return only, all_true(rows, only.shape[1], device)
    ids, completes = [], []
    for variant in variants:
        sequence = constant(variant, device)
        progress = torch.zeros(rows, dtype=torch.int64, device=device)
        for length in range(1, min(len(variant), input_ids.shape[1] + 1)):
            matched = (input_ids[:, -length:] == sequence[:length]).all(1) & (within >= length)
            progress = torch.where(matched, length, progress)
        ids.append(sequence[progress])
        completes.append(progress == len(variant) - 1)
    return torch.stack(ids, 1), torch.stack(completes, 1)


def half_written_ids(
    input_ids: torch.Tensor, within: torch.Tensor, variants: tuple[tuple[int, ...], ...], most: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens after which a row would end with more than ``most`` [B] tokens of a marker that is not complete.

    Args:
        input_ids: [B, T] int64.
        within: [B] int64, how many of the row's last tokens a half-written marker may lie in.
        variants: the token sequences that spell the marker.
        most: [B] int64.

    Returns:
        ``(ids, there)``: [B, n] int64 last token of each beginning of each variant, and [B, n] bool whether the row
        ends with what comes before it.
    """
    ids, there = [], []
    for variant in variants:
        for before in range(min(len(variant) - 1, input_ids.shape[1] + 1)):
            begun = (within >= before) & (most <= before)
            for back in range(before):
                begun = begun & (input_ids[:, back - before] == variant[back])
            ids.append(variant[before])
            there.append(begun)
    if not ids:
        none = within.new_zeros(len(within), 0)
        return none, none.bool()
    return constant(tuple(ids), within.device).expand(len(within), -1), torch.stack(there, 1)


def fold_end_of_sequence(
    scores: torch.Tensor,
    rows: torch.Tensor,
    eos_ids: tuple[int, ...],
    closing_ids: torch.Tensor,
    temperature: float | torch.Tensor,
    *,
    in_place: bool = False,
) -> torch.Tensor:
    """End of sequence inside a limited thought: its probability goes to the closing token [B], itself is banned.
    With ``in_place`` the ``scores`` [B, V] themselves are written to."""
    if not eos_ids or not may_hold(rows):
        return scores
    if may_look(scores.device) and scores.dtype in _LEAST:
        folded = scores if in_place else scores.clone()
        _fold_on_host(folded, rows, eos_ids, closing_ids, temperature)
        return folded
    columns = constant(eos_ids, scores.device).expand(scores.shape[0], -1)
    closing = closing_ids[:, None]
    both = scores.gather(1, torch.cat([closing, columns], 1))
    joined = tempered_sum(both, temperature)
    where = rows[:, None]
    banned = both[:, 1:].masked_fill(where, -torch.inf)
    # Should they be one token, the close is what counts.
    folded = scores if in_place else scores.clone()
    return folded.scatter_(1, columns, banned).scatter_(1, closing, torch.where(where, joined, both[:, :1]))


def _fold_on_host(
    scores: torch.Tensor,
    rows: torch.Tensor,
    eos_ids: tuple[int, ...],
    closing_ids: torch.Tensor,
    temperature: float | torch.Tensor,
) -> None:
    """The same in place by NumPy, whose operations on few numbers cost less."""
    values, where = array_of(scores), array_of(rows)[:, None]
    at, ends = np.arange(len(values))[:, None], array_of(constant(eos_ids, scores.device))
    closing = array_of(closing_ids)[:, None]
    chosen, eos = values[at, closing], values[:, ends]
    both = np.concatenate([chosen, eos], 1, dtype=np.float64)
    warmth = temperature if isinstance(temperature, int | float) else array_of(temperature)
    base = np.maximum(np.maximum.reduce(both, axis=1, keepdims=True), _LEAST[scores.dtype])
    with np.errstate(divide="ignore"):
        joined = base + warmth * np.log(np.add.reduce(np.exp((both - base) / warmth), axis=1, keepdims=True))
    values[:, ends] = np.where(where, -np.inf, eos)
    # Should they be one token, the close is what counts.
    values[at, closing] = np.where(where, joined, chosen)


def probability_of(
    scores: torch.Tensor, token_ids: torch.Tensor, temperature: float | torch.Tensor
) -> torch.Tensor:
    """[B] probability of any of ``token_ids`` [B, c] under logits [B, V] at ``temperature`` (a number or [B, 1])."""
    chosen = scores.gather(1, token_ids)
    if token_ids.shape[1] > 1:  # spellings may share a token, whose probability counts once
        again = (token_ids[:, :, None] == token_ids[:, None, :]).tril(-1).any(2)
        chosen = tempered_sum(chosen.masked_fill(again, -torch.inf), temperature)
    share = chosen - tempered_sum(scores, temperature)
    if not isinstance(temperature, int | float) or temperature != 1:
        share = share / temperature
    return share.squeeze(1).exp()


def tempered_sum(scores: torch.Tensor, temperature: float | torch.Tensor) -> torch.Tensor:
    """[B, 1] the logit T log sum exp(z / T) of any of the logits z [B, n]; T is a number or [B, 1].

    The highest logit is taken out first: over a small temperature it may leave the range of the dtype.
    """
    if isinstance(temperature, int | float) and temperature == 1:
        return scores.logsumexp(1, keepdim=True)
    highest = scores.amax(1, keepdim=True)
    base = highest.clamp(min=torch.finfo(scores.dtype).min)  # nothing but -inf stays -inf
    return base + temperature * ((scores - base) / temperature).logsumexp(1, keepdim=True)


def with_transition(
    delimiters: ThinkingDelimiters, tokenizer: PreTrainedTokenizerBase, phrase: str
) -> ThinkingDelimiters:
    """Markers whose forced close writes ``phrase`` before the close, such as "Time is up, so I answer now.".

    The phrase is part of the close and not of the thought: it does not count as thinking tokens, and room is kept for
    it before the answer's reserve. A natural close is recognised as before.

    Raises:
        DelimiterError: for a phrase without text, or one that holds a marker or an end of sequence.
    """
    ids = phrase_ids(tokenizer, delimiters, phrase, "transition_phrase", DelimiterError)
    if not phrase.strip() or not ids:
        raise DelimiterError(
            f"transition_phrase={phrase!r} is empty: expected some text; leave it unset for none"
        )
    return replace(delimiters, forced_end_ids=(*ids, *delimiters.forced_end_ids))
