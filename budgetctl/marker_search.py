"""Where markers stand in rows of tokens, all of them and all columns at once: few operations, whatever their number."""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from budgetctl.delimiters import ThinkingDelimiters, Tokens
from budgetctl.on_device import columns_of, constant

#: Kinds of markers.
HEADERS, EOS, OPENS, CLOSES = range(4)


class Markers(NamedTuple):
    """Markers that stand in rows [B, T], kind by kind: ``headers`` of the turn, ends of sequence, opens, closes.

    ``found`` [n, B, T] bool: the marker ends at the column, wherever it begins. ``counts``: how many there are of each
    kind. ``sizes``: tokens of each.
    """

    found: Tensor
    counts: tuple[int, int, int, int]
    sizes: tuple[int, ...]

    @classmethod
    def find(cls, ids: Tensor, delimiters: ThinkingDelimiters) -> Markers:
        kinds = (
            (delimiters.turn_start_ids,) if delimiters.turn_start_ids else (),
            tuple((token,) for token in delimiters.eos_ids),
            delimiters.all_opens,
            delimiters.all_ends,
        )
        markers = tuple(marker for kind in kinds for marker in kind)
        headers, eos, opens, ends = map(len, kinds)
        return cls(find_markers(ids, markers), (headers, eos, opens, ends), tuple(map(len, markers)))

    def of(self, kind: int) -> slice:
        """Which of them are of a kind, 0 to 3."""
        before = sum(self.counts[:kind])
        return slice(before, before + self.counts[kind])

    def any(self, kind: int) -> Tensor:
        """[B, T] bool, where one of a kind ends."""
        return any_of(self.found[self.of(kind)])


def find_markers(ids: Tensor, markers: tuple[Tokens, ...]) -> Tensor:
    """[n, B, T] bool: each of n ``markers`` ends at the column, of rows [B, T] int64; no marker is empty."""
    width, longest = ids.shape[1], max((1, *map(len, markers)))
    tokens = tuple(dict.fromkeys(token for marker in markers for token in marker))
    wide = ids if longest == 1 else pad(ids, (longest - 1, 0), value=-1)
    if torch.compiler.is_compiling():
        hits = [wide == token for token in tokens]
    else:  # all at once
        every = wide == constant(tokens, ids.device)[:, None, None]
        if longest == 1 and len(tokens) == len(markers):
            return every
        hits = list(every)
    found = []
    for marker in markers:
        first = longest - len(marker)
        parts = [
            hits[tokens.index(token)][:, first + at : first + at + width] for at, token in enumerate(marker)
        ]
        found.append(reduce(torch.logical_and, parts))
    return torch.stack(found) if found else torch.zeros(0, *ids.shape, dtype=torch.bool, device=ids.device)


def match_lengths(ids: Tensor, variants: tuple[Tokens, ...], start: Tensor) -> Tensor:
    """[B, T] int64: length of the longest variant that ends at each column and begins at or after ``start`` [B]."""
    variants = tuple(variant for variant in variants if variant)
    if not variants:
        return torch.zeros_like(ids, dtype=torch.int64)
    first = start + constant(tuple(len(variant) - 1 for variant in variants), ids.device)[:, None]
    begins = columns_of(ids.shape[1], ids.device) >= first[:, :, None]
    return longest_of(find_markers(ids, variants) & begins, variants)


def longest_of(found: Tensor, variants: tuple[Tokens, ...]) -> Tensor:
    """[B, T] int64: length of the longest of the variants ``found`` [n, B, T], 0 for none."""
    if not variants:
        return torch.zeros(found.shape[1:], dtype=torch.int64, device=found.device)
    sizes = tuple(map(len, variants))
    if len(set(sizes)) == 1:
        return any_of(found) * sizes[0]
    return (found * constant(sizes, found.device)[:, None, None]).amax(0)


def lead_length(ids: Tensor, thought_start: Tensor, end: Tensor | None, lead: Tokens) -> Tensor | None:
    """[B] length of ``lead`` where it stands complete at column ``thought_start``, else 0; None without a lead."""
    if not lead:
        return None
    width = ids.shape[1]
    last = thought_start + (len(lead) - 1) if len(lead) > 1 else thought_start
    there = last < (width if end is None else end)
    for offset, token in enumerate(lead):
        column = (thought_start + offset if offset else thought_start).clamp(max=width - 1)
        there = there & (ids.gather(1, column[:, None])[:, 0] == token)
    return there * len(lead)


def blank_length(
    ids: Tensor,
    begin: Tensor,
    closes: Tensor,
    closing: Tensor,
    delimiters: ThinkingDelimiters,
    prompt: int | Tensor | None,
) -> Tensor | None:
    """[B] tokens from column ``begin`` to the first of ``closes`` [B, T], where they are one of ``blank_ids`` and the close
    stands in the prompt, else 0; without ``prompt`` any close may be the template's. None without blanks.

    Args:
        closing: [n, B, T] bool, closes that stand there, by their spelling.
    """
    if not delimiters.blank_ids:
        return None
    width, ends = ids.shape[1], delimiters.all_ends
    close = first_column(closes)
    size: int | Tensor = len(ends[0])
    if len({*map(len, ends)}) > 1:
        size = longest_of(closing, ends).gather(1, close.clamp(max=width - 1)[:, None])[:, 0]
    between = close + 1 - size - begin
    given = close < (width if prompt is None else prompt)
    length = torch.zeros_like(begin)
    for blank in delimiters.blank_ids:
        hit = given & (between == len(blank))
        for offset, token in enumerate(blank):
            column = (begin + offset).clamp(max=width - 1)
            hit = hit & (ids.gather(1, column[:, None])[:, 0] == token)
        length = torch.where(hit, len(blank), length)
    return length


def marker_progress(ids: Tensor, marker: Tokens, begin: Tensor, rows: Tensor) -> Tensor:
    """[B] length of the longest proper beginning of ``marker`` that ends the row, from column ``begin`` on.

    It never reaches back over a marker of the other kind, since the two cannot overlap.
    """
    width, most = ids.shape[1], len(marker) - 1
    if most < 1:
        return torch.zeros_like(begin)
    if most == 1:
        return (rows & (begin < width) & (ids[:, -1] == marker[0])).long()
    if width < most:
        return marker_progress(ids, marker[:-1], begin, rows)
    if torch.compiler.is_compiling():  # these fuse
        progress = torch.zeros_like(begin)
        for length in range(1, most + 1):
            parts = [ids[:, at - length] == marker[at] for at in range(length)]
            hit = reduce(torch.logical_and, parts) & rows & (begin <= width - length)
            progress = torch.where(hit, length, progress)
        return progress
    # [most, most] by length: the last tokens, and whether a column counts.
    lengths = range(1, most + 1)
    wanted = constant(tuple(t for n in lengths for t in (-1,) * (most - n) + marker[:n]), ids.device)
    wanted = wanted.view(most, 1, most)
    size = constant(tuple(lengths), ids.device)[:, None]
    free = columns_of(most, ids.device) < (most - size)[:, :, None]
    hit = ((ids[:, -most:] == wanted) | free).all(2) & (begin <= width - size) & rows
    return torch.where(hit, size, 0).amax(0)


def any_of(masks: Tensor) -> Tensor:
    """[B, T] bool: any of [n, B, T]."""
    return masks[0] if len(masks) == 1 else masks.any(0)


def highest(values: Tensor) -> Tensor:
    """[B] the highest of [n, B], n at least 1."""
    return values[0] if len(values) == 1 else values.amax(0)


def first_column(mask: Tensor) -> Tensor:
    """[B] first true column of a [B, T] mask, T when there is none; T is at least 1."""
    width = mask.shape[-1]
    return torch.where(mask, columns_of(width, mask.device), width).amin(-1)


def last_column(mask: Tensor) -> Tensor:
    """[..., B] last true column of a [..., B, T] mask, -1 when there is none."""
    width = mask.shape[-1]
    if width == 0:
        return torch.full(mask.shape[:-1], -1, device=mask.device)
    return torch.where(mask, columns_of(width, mask.device), -1).amax(-1)
