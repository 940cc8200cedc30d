"""Token sequences against each other: one inside the other, overlaps, the longest of several at a place."""

from __future__ import annotations

Tokens = tuple[int, ...]


def holds(outer: Tokens, inner: Tokens) -> bool:
    """Whether ``inner`` stands in ``outer``."""
    return any(outer[at : at + len(inner)] == inner for at in range(len(outer) - len(inner) + 1))


def stands_inside(inner: Tokens, outer: Tokens) -> bool:
    """Whether ``inner`` stands in ``outer`` with other tokens on both sides."""
    return holds(outer[1:-1], inner)


def can_overlap(a: Tokens, b: Tokens) -> bool:
    """Whether two sequences agree on every token they would share, laid over each other at some shift."""
    for shift in range(1 - len(b), len(a)):
        low, high = max(shift, 0), min(shift + len(b), len(a))
        if a[low:high] == b[low - shift : high - shift]:
            return True
    return False


def longest_at(tokens: Tokens, at: int, variants: tuple[Tokens, ...]) -> int:
    """Length of the longest of ``variants`` that stands at the position ``at``, 0 for none."""
    return max((len(v) for v in variants if tokens[at : at + len(v)] == v), default=0)
