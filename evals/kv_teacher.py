"""Teacher forcing under a cache: a prompt in one piece, then the text's own tokens one by one, as if generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from transformers import Cache, PreTrainedModel

from budgetctl.evals.kv_stepwise import stepwise
from budgetctl.evals.metrics import Interval, bootstrap_mean


@dataclass(frozen=True)
class Reading:
    """What a model made of texts whose first tokens were its prompt.

    Args:
        nll: [texts, predictions] minus log probability of each next token, nats.
        likeliest: [texts, predictions] the token it would have written.
        peak: most slots a head that held tokens at a time.
    """

    nll: np.ndarray
    likeliest: np.ndarray
    peak: int


@torch.inference_mode()
def read_forced(model: PreTrainedModel, ids: torch.Tensor, cache: Cache, prompt: int) -> Reading:
    """Feed texts through ``cache``, attention token by token.

    Args:
        model: whose logits are its output embedding's, with the attention function that the cache needs.
        ids: [B, n] int64, texts of equal length without padding.
        cache: empty.
        prompt: tokens in one piece, from 1 to n - 1.

    Returns:
        for the n - prompt tokens after the prompt.
    """
    places = torch.arange(ids.shape[1] - 1)[None].expand(len(ids), -1)
    with stepwise(model, prompt) as layers:
        states = model.base_model(ids[:, :-1], past_key_values=cache, position_ids=places).last_hidden_state
        peak = max(layer.peak for layer in layers)
    losses, likeliest = [], []
    # The logits of one text at a time: those of all are large.
    for row, following in zip(states[:, prompt - 1 :], ids[:, prompt:], strict=True):
        logits = model.get_output_embeddings()(row).float()
        losses.append(F.cross_entropy(logits, following, reduction="none"))
        likeliest.append(logits.argmax(-1))
    return Reading(torch.stack(losses).double().numpy(), torch.stack(likeliest).numpy(), peak)


@dataclass(frozen=True)
class Quality:
    """Against the full cache, over the texts with intervals: more nats a token, and share of equal top-1 tokens."""

    loss: Interval
    agreement: Interval


def counted(length: int, prompt: int, capacity: int) -> slice:
    """Predictions that something may have been evicted before: of tokens at places above ``capacity``; of all, where there
    are none."""
    first = max(capacity + 1 - prompt, 0)
    return slice(first if first < length - prompt else 0, None)


def per_text(reading: Reading, full: Reading, part: slice) -> tuple[np.ndarray, np.ndarray]:
    """``(more nats a token, share of equal top-1 tokens)``, each [texts], over ``part`` of the predictions."""
    loss = (reading.nll - full.nll)[:, part].mean(1)
    return loss, (reading.likeliest == full.likeliest)[:, part].mean(1)


def quality(reading: Reading, full: Reading, part: slice) -> Quality:
    """Both with percentile-bootstrap intervals of 95 % over the texts; each text is paired with itself."""
    loss, agreement = per_text(reading, full, part)
    return Quality(bootstrap_mean(loss), bootstrap_mean(agreement))


def differences(reading: Reading, other: Reading, part: slice) -> Interval:
    """Nats a token that ``reading`` loses more than ``other``, paired by text."""
    return bootstrap_mean((reading.nll - other.nll)[:, part].mean(1))


def stacked(readings: Sequence[Reading]) -> Reading:
    """Of several batches of texts, one after the other."""
    return Reading(
        np.concatenate([r.nll for r in readings]),
        np.concatenate([r.likeliest for r in readings]),
        max(r.peak for r in readings),
    )
