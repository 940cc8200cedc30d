"""The remaining-length forecast of one model at work: predictor, hidden-state source and candidate table."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property

import torch

from budgetctl.guided_step import guided_step_of_logits
from budgetctl.kernels.gamma_guidance import GuidanceHead, gamma_guidance
from budgetctl.predictors.folded import FoldedFeatures
from budgetctl.predictors.gamma import GammaLengthPredictor
from budgetctl.predictors.hidden_state import LogitsHiddenState

#: The natural length of a thought is the length that suffices for this share of the model's thoughts on a question.
#: A budget bounds the longest of them, so that it is an upper quantile and not the median that effort is a share of.
NATURAL_COVERAGE = 0.8


@dataclass(frozen=True)
class Outlook:
    """What is known at one step: ``features`` [B, n] that ``head`` works on."""

    features: torch.Tensor
    head: GuidanceHead

    @cached_property
    def parameters(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``(concentration, rate)`` of the state, [B] each; most steps need neither."""
        with torch.no_grad():
            return self.head.state_parameters(self.features)


class LengthForecast:
    """Remaining thinking length from a row's logits.

    Args:
        predictor: a fitted :class:`GammaLengthPredictor`.
        source: recovers the last hidden state [B, d] from logits [B, V].
        output_embedding: [V, d], the model's output embedding.
        guidance_strength: the predictor's default strength.
        natural_level: quantile level at which the predicted length covers ``NATURAL_COVERAGE`` of the thoughts; a
            calibrated predictor knows better than ``NATURAL_COVERAGE`` itself.
        dtype: what the forecast is computed in.
        compiled: run guidance by ``torch.compile``; the first steps of a batch size then take seconds, and a C++ or
            GPU compiler is needed.
    """

    def __init__(
        self,
        predictor: GammaLengthPredictor,
        source: LogitsHiddenState,
        output_embedding: torch.Tensor,
        guidance_strength: float,
        dtype: torch.dtype = torch.float32,
        natural_level: float = NATURAL_COVERAGE,
        compiled: bool = False,
    ) -> None:
        # A copy: the caller's predictor keeps its dtype and may serve another forecast.
        self.predictor = deepcopy(predictor).to(device=output_embedding.device, dtype=dtype).eval()
        self.source = source
        self.guidance_strength = guidance_strength
        self.natural_level = natural_level
        self.dtype = dtype
        self.features = FoldedFeatures(source, *self.predictor.input_map(), dtype)
        self.head = self.predictor.guidance_head(output_embedding.detach().to(dtype))
        #: ``guided_step_of_logits`` compiled, None where it runs as it is.
        self.compiled_step = torch.compile(guided_step_of_logits) if compiled else None

    def outlook(self, scores: torch.Tensor, own_logits: bool = False) -> Outlook:
        """The outlook for logits [B, V]; ``own_logits`` says that they are as the model put them out."""
        if torch.is_grad_enabled():  # entering no_grad costs as much as some operations
            with torch.no_grad():
                return self.outlook(scores, own_logits)
        return Outlook(self.features(scores, own_logits), self.head)

    @torch.no_grad()
    def natural_length(self, outlook: Outlook) -> torch.Tensor:
        """[B] thinking tokens still to come that suffice for ``NATURAL_COVERAGE`` of the thoughts, the close not
        counted, at least 1."""
        return self.length_of(*outlook.parameters)

    def length_of(self, concentration: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        """The same [B] from the state's parameters [B]."""
        return (self.predictor.quantile(concentration, rate, self.natural_level) - 1).clamp(min=1)

    @torch.no_grad()
    def fit(
        self, outlook: Outlook, candidate_ids: torch.Tensor, left: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """log P(L <= left + 1), that the thought ends within ``left`` [B] more tokens and its close.

        Returns:
            ``(candidate_fit, state_fit)``: [B, k] given each next token of ``candidate_ids`` [B, k], and [B] of the
            state alone.
        """
        concentration, rate = self.head.parameters(outlook.features, candidate_ids)
        fit = self.predictor.fit_log_prob(concentration, rate, left[:, None])
        return fit[:, 1:], fit[:, 0]

    def guide(
        self,
        scores: torch.Tensor,
        outlook: Outlook,
        candidate_scores: torch.Tensor,
        candidate_ids: torch.Tensor,
        rows: torch.Tensor,
        *,
        interval: bool,
        out: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Guided logits [B, V] (a new tensor unless ``out`` is given) and the state's log P(fit) [B]; arguments as
        :func:`~budgetctl.kernels.gamma_guidance.gamma_guidance` describes them."""
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self.guide(
                    scores, outlook, candidate_scores, candidate_ids, rows, interval=interval, out=out
                )
        return gamma_guidance(
            scores,
            outlook.features,
            self.head,
            candidate_scores,
            candidate_ids,
            rows,
            interval=interval,
            out=out,
        )
