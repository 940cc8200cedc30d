"""Guidance in plain PyTorch: what the kernel computes, for the CPU and as the measure of the kernel.

Each likely next token is weighed by the probability that the thought then ends in time; ``budgetctl.guidance`` gives
the method, its source and its departures from it.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from budgetctl.kernels.host_reads import may_look
from budgetctl.kernels.log_gamma_cdf import log_gamma_cdf
from budgetctl.kernels.row_state import (
    ACTION,
    CLOSING,
    FORCED,
    LEFT,
    LOWER,
    STRENGTH,
    TEMPERATURE,
    Action,
    GuidanceHead,
)

#: A token is a likely continuation when it has at least this share of the most likely one's probability.
LIKELY_SHARE = 0.05
#: The model itself considers closing when the close has at least this share of the most likely other token's.
CLOSE_SHARE = 0.5
#: Below this probability that the best likely continuation fits, the strength is scaled down.
HOPELESS_FIT = 0.05
#: log P of an interval's lower end stays this far below that of its upper end, so that an empty one is finite.
LEAST_GAP = 1e-6
#: Most that a float16 logit is changed by; larger types hold every push.
MOST_HALF_PUSH = 16_000.0


def gamma_guidance(
    logits: torch.Tensor,
    features: torch.Tensor,
    head: GuidanceHead,
    candidate_scores: torch.Tensor,
    candidate_ids: torch.Tensor,
    rows: torch.Tensor,
    *,
    interval: bool = False,
    tail: str = "exact",
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Guided logits; :func:`budgetctl.kernels.gamma_guidance.gamma_guidance` describes arguments and result.

    Works in the widest dtype among ``features`` and ``candidate_scores``, float32 at least.
    """
    work = torch.promote_types(torch.promote_types(features.dtype, candidate_scores.dtype), torch.float32)
    action, temperature, strength = (rows[:, i, None] for i in (ACTION, TEMPERATURE, STRENGTH))
    guided, forced = action == int(Action.GUIDE), action == int(Action.FORCE)
    closing_ids = rows[:, CLOSING:].long()
    fit = _fit(features, head, candidate_ids, rows, interval).to(work)
    push, rest = guidance_push(
        candidate_scores / temperature.to(work),
        candidate_ids,
        fit[:, 1:],
        fit[:, 0],
        closing_ids,
        (temperature * strength).to(work),
    )
    if logits.dtype == torch.float16:
        push, rest = push.clamp(-MOST_HALF_PUSH, MOST_HALF_PUSH), rest.clamp(min=-MOST_HALF_PUSH)
    state_fit = fit[:, 0].masked_fill(((action == int(Action.LEAVE)) | forced).squeeze(1), 0.0)

    ids = torch.cat([candidate_ids, closing_ids], 1)
    before = logits.gather(1, ids)
    # The close keeps its logit wherever it stands in the ranking.
    added = F.pad(push, (0, closing_ids.shape[1]))
    if tail == "relative":
        added = added - rest
        result = logits.clone() if out is None else out if out is logits else out.copy_(logits)
    else:
        # Adding -0.0 leaves every number as it is, bit for bit.
        rest = rest.masked_fill(~guided, -0.0)
        if logits.dtype == work:
            result = torch.add(logits, rest, out=out)
        else:
            result = (logits + rest).to(logits.dtype)
            result = result if out is None else out.copy_(result)
    result.scatter_(1, ids, torch.where(guided, (before + added).to(logits.dtype), before))
    if not may_look(logits.device) or bool(forced.any()):
        result.masked_fill_(forced, -torch.inf)
        token = rows[:, FORCED, None].long()
        result.scatter_(1, token, torch.where(forced, 0.0, result.gather(1, token)))
    return result, state_fit


def _fit(
    features: torch.Tensor,
    head: GuidanceHead,
    candidate_ids: torch.Tensor,
    rows: torch.Tensor,
    interval: bool,
) -> torch.Tensor:
    """[B, 1 + k] log probability that the thought ends in time: by the state, then given each candidate."""
    concentration, rate = head.parameters(features, candidate_ids)

    def log_prob(column: int) -> torch.Tensor:
        bound = (rows[:, column, None].clamp(min=0) + 2).log()
        return log_gamma_cdf(concentration, rate, bound)

    fit = log_prob(LEFT)
    return interval_fit(fit, log_prob(LOWER), rows[:, LOWER] >= 0) if interval else fit


def guidance_push(
    log_probs: torch.Tensor,
    candidate_ids: torch.Tensor,
    candidate_fit: torch.Tensor,
    state_fit: torch.Tensor,
    closing_ids: torch.Tensor,
    strength: float | torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What guidance adds to the logits of each row (before temperature).

    Args:
        log_probs: [B, k] log probabilities of the candidates before guidance, up to a constant a row.
        candidate_ids: [B, k] int64 token ids of the candidates, distinct within a row.
        candidate_fit: [B, k] log P(L <= left | candidate).
        state_fit: [B] log P(L <= left) of the state alone, the value of all other tokens.
        closing_ids: [B, c] int64, the tokens that close (or go on closing) the thought.
        strength: guidance strength s, a number or [B, 1]; 1 is Bayes' rule for an exact predictor.

    Returns:
        ``(push, tail)``: [B, k] for the candidates and [B, 1] for every other token, at most 0 for the latter. The
        push of a closing token is 0: what it gains, the others lose.
    """
    closing = (candidate_ids[:, :, None] == closing_ids[:, None, :]).any(2)
    others = log_probs.masked_fill(closing, -torch.inf)
    highest = others.amax(1, keepdim=True)
    # No banned token is a likely one, even if all are banned.
    least = (highest + math.log(LIKELY_SHARE)).clamp(min=torch.finfo(others.dtype).min)
    best = candidate_fit.masked_fill(others < least, -torch.inf).amax(1, keepdim=True)
    # A row whose only candidate is the close has nothing to weigh.
    best = torch.where(best == -torch.inf, state_fit[:, None], best)
    # A close that the model considers fits for certain, and is then the best there is.
    close = log_probs.masked_fill(~closing, -torch.inf).amax(1, keepdim=True)
    best = torch.where(close >= highest + math.log(CLOSE_SHARE), 0.0, best)
    relative = (candidate_fit - best).masked_fill(closing, 0.0)
    tail = (state_fit[:, None] - best).clamp(max=0.0)
    hopeless = -math.log(HOPELESS_FIT)
    scale = strength * hopeless / (-best).clamp(min=hopeless)
    return scale * relative, scale * tail


def interval_fit(high: torch.Tensor, low: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """log P(low < L <= high) in the rows of ``rows`` [B], ``high`` elsewhere.

    Args:
        high: [B] or [B, k], log P(L <= upper end).
        low: likewise, log P(L <= lower end), at most ``high``.
        rows: [B] bool.
    """
    rows = rows.view(-1, *[1] * (high.dim() - 1))
    # The clamp keeps an interval that holds next to nothing finite.
    gap = (low - high).clamp(max=-LEAST_GAP)
    return torch.where(rows, high + torch.log(-torch.expm1(gap)), high)
