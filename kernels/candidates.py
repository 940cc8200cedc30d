"""The likeliest tokens of each row."""

from __future__ import annotations

import torch

#: Tokens of a block, and the vocabulary from which blocks pay on the CPU.
BLOCK = 64
LARGE_VOCABULARY = 16_384


def top_candidates(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``k`` highest scores of each row and their ids, in no order: to put them in one takes twice the time of finding
    them. Which of equal scores are left out may differ from ``topk``.

    On the CPU in two steps for a large vocabulary: the k highest are among the k blocks of 64 tokens with the highest
    maxima, and a maximum is several times as fast as a selection.

    Args:
        scores: [B, V], without NaN.
        k: at most V.

    Returns:
        ``(values, ids)``, [B, k] each; ids are int64.
    """
    vocab = scores.shape[1]
    count = vocab // BLOCK
    if scores.device.type != "cpu" or vocab < LARGE_VOCABULARY or k > count:
        values, ids = scores.topk(k, dim=1, sorted=False)
        return values, ids
    whole = count * BLOCK
    blocks = scores[:, :whole].unflatten(1, (count, BLOCK))
    best = blocks.amax(2).topk(k, dim=1, sorted=False).indices
    chosen = blocks.gather(1, best[:, :, None].expand(-1, -1, BLOCK)).flatten(1)
    first = best * BLOCK
    if whole < vocab:
        # The remainder, as a block of its own.
        chosen = torch.cat([chosen, scores[:, whole:]], 1)
        first = torch.nn.functional.pad(first, (0, 1), value=whole)
    values, at = chosen.topk(k, dim=1, sorted=False)
    return values, first.gather(1, at // BLOCK) + at % BLOCK
