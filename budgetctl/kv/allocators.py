"""How slots are shared between layers and heads: capacities for a :class:`~budgetctl.kv.cache.BudgetCache`.

Each takes the average number of slots a head and gives out exactly that many in all. Floors are taken first and the rest
is shared, so a floor never adds to the total (clamping after sharing, as EpiCache's script does it, does).

Heads of a layer that have equal capacities are views of one tensor; unequal ones are gathered at each step on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from budgetctl.apportion import apportion
from budgetctl.errors import CacheError


def uniform(capacity: int, layers: int) -> list[int]:
    """``capacity`` slots a head in every layer."""
    return [capacity] * layers


def by_sensitivity(
    capacity: int, alignment: Sequence[float], *, power: float = 1.1, floor: float = 0.25
) -> list[int]:
    """More slots for layers whose keys change when context is missing (EpiCache, arXiv 2509.17396).

    A layer's share is (1 - s)^power, with s its ``alignment`` scaled to [0, 1] over the layers.

    Args:
        capacity: slots a head, on average over the layers.
        alignment: [L] of each layer, the cosine of its keys with and without the context (``profiles.key_alignment``);
            the lower, the more sensitive.
        power: how much the difference counts; 0 is uniform.
        floor: least share of ``capacity`` of a layer, in [0, 1].

    Returns:
        [L] slots a head; their sum is L x ``capacity``.

    Raises:
        CacheError: for a floor outside [0, 1], or no layers.
    """
    if not alignment:
        raise CacheError(
            "no layers to share slots out to: expected the alignment of each; see profiles.key_alignment"
        )
    low, high = min(alignment), max(alignment)
    spread = high - low or 1.0
    weights = [(1 - (a - low) / spread) ** power if high > low else 1.0 for a in alignment]
    least = _floor(capacity, floor)
    return apportion(capacity * len(weights), weights, [least] * len(weights))


def by_head(capacity: int, scores: torch.Tensor, *, floor: float = 0.2) -> list[int]:
    """Slots of the heads of one layer by how many of the layer's best keys each has (Ada-KV, arXiv 2407.11550, with its
    floor of 0.2; on worst-case scores DefensiveKV, arXiv 2510.13334).

    Args:
        capacity: slots a head, on average over the heads.
        scores: [H, n] of the keys of a sample prompt, comparable between heads (``profiles.importance``).
        floor: least share of ``capacity`` of a head, in [0, 1].

    Returns:
        [H] slots; their sum is H x ``capacity``.

    Raises:
        CacheError: for a floor outside [0, 1], or scores of another shape.
    """
    return by_layer_and_head(capacity, [scores], floor=floor)[0]


def by_layer_and_head(
    capacity: int, scores: Sequence[torch.Tensor], *, floor: float = 0.2
) -> list[list[int]]:
    """Slots of all heads by how many of the whole model's best keys each has (Layer-DefensiveKV, arXiv 2510.13334, which
    has no floor).

    Args:
        capacity: slots a head, on average over all heads of all layers.
        scores: for each layer [H, n], comparable between layers and heads.
        floor: least share of ``capacity`` of a head, in [0, 1].

    Returns:
        [L][H] slots; their sum is L x H x ``capacity``.

    Raises:
        CacheError: for a floor outside [0, 1], or scores of another shape.
    """
    if not scores or any(s.dim() != 2 or 0 in s.shape for s in scores):
        shapes = [tuple(s.shape) for s in scores]
        raise CacheError(
            f"scores of shapes {shapes}: expected [heads, keys] for each layer; see profiles.importance"
        )
    least = _floor(capacity, floor)
    heads = [head for layer in scores for head in layer.detach().double().cpu()]
    total = capacity * len(heads)
    # The best of each head up to the floor come first, then the best of all.
    ranked = []
    for at, head in enumerate(heads):
        best = head.sort(descending=True).values.tolist()
        ranked += [(rank >= least, -score, rank, at) for rank, score in enumerate(best)]
    ranked.sort()
    counts = [0] * len(heads)
    for *_, at in ranked[:total]:
        counts[at] += 1
    # A prompt with fewer keys than slots leaves some to share out, the emptiest floors first.
    floors = [max(count, least) for count in counts]
    surplus = sum(floors) - total
    if surplus > 0:
        floors = counts
    counts = apportion(total, [1.0] * len(heads), floors)
    rows = iter(counts)
    return [[next(rows) for _ in layer] for layer in scores]


def by_need(
    total: int, needs: Sequence[int], floors: Sequence[int], weights: Sequence[float] | None = None
) -> list[int]:
    """Slots of rows that share one pool, in proportion to the root of their lengths.

    If a row of N tokens in C slots loses w N / C, the least loss in all under a sum of slots has C in proportion to
    √(w N), within each row's bounds (Lagrange). No row gets more than it needs: what fits is never evicted.

    Args:
        total: slots a head of all rows.
        needs: N of each row, tokens that it will have at its end.
        floors: least slots of each row; one that needs less gets no less than its floor.
        weights: w of each row, positive; None for all alike.

    Returns:
        Slots of each row, between its floor and its need. Their sum is ``total``, or that of the needs where this is less.

    Raises:
        CacheError: when the floors do not fit, for a weight that is not positive, or lists of different lengths.
    """
    weights = [1.0] * len(needs) if weights is None else weights
    if (
        not len(needs) == len(floors) == len(weights)
        or sum(floors) > total
        or not all(0 < w < math.inf for w in weights)
    ):
        raise CacheError(
            f"{total} slots for rows that need {list(needs)}, at least {list(floors)}, with weights {list(weights)}: expected "
            "floors that fit into the total, and as many positive weights; give a larger KV budget or fewer rows"
        )
    tops = [max(need, floor) for need, floor in zip(needs, floors, strict=True)]
    if sum(tops) <= total:
        return tops
    roots = [math.sqrt(w * max(need, 1)) for w, need in zip(weights, needs, strict=True)]

    def at(scale: float) -> list[float]:
        rows = zip(roots, floors, tops, strict=True)
        return [min(max(scale * root, floor), top) for root, floor, top in rows]

    low, high = 0.0, max(tops) / min(roots)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if math.fsum(at(middle)) <= total else (low, middle)
    exact = at(low)
    found = [math.floor(x) for x in exact]
    order = sorted(range(len(exact)), key=lambda i: (found[i] - exact[i], i))
    for i in (i for i in order if found[i] < tops[i]):
        if sum(found) == total:
            break
        found[i] += 1
    return found


def _floor(capacity: int, floor: float) -> int:
    if not 0 <= floor <= 1 or capacity < 1:
        raise CacheError(
            f"capacity {capacity} with a floor of {floor}: expected at least 1 slot, and a share from 0 to 1 of it"
        )
    return max(1, math.floor(capacity * floor))
