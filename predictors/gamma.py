"""The remaining-length model: log(1 + L) of the thinking tokens left is Gamma distributed, given the hidden state.

L counts the thinking tokens left including the close, so L >= 1 (a close of several tokens counts once). It is told
at the position *before* the next token is chosen, and that token is counted: before the last thinking token L = 2,
before the close L = 1. With ``left`` content tokens still allowed, the thought fits if and only if L <= left + 1.

The state's parameters come from a small trunk on the last hidden state. Given a candidate next token v they are
moved by a low-rank bilinear term of the state and v's row of the model's own output embedding, after Budget Guidance
(arXiv 2506.13752), whose heads have one output per vocabulary entry instead.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist

import torch
from torch import nn
from torch.nn import functional as F

from budgetctl.kernels.log_gamma_cdf import log_gamma_cdf
from budgetctl.kernels.row_state import GuidanceHead

#: Least value of concentration and rate.
FLOOR = 1e-4
#: Quantiles are cut off here (tokens).
MAX_TOKENS = 2.0**30


@dataclass(frozen=True)
class GammaPredictorConfig:
    """Sizes: ``hidden_size`` d of the language model, ``width`` of the state trunk, ``rank`` of the token term."""

    hidden_size: int
    width: int = 64
    rank: int = 16

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


class GammaLengthPredictor(nn.Module):
    """Gamma parameters of log(1 + L) from a hidden state [B, d], with or without a candidate next token.

    ``hidden_mean``, ``hidden_scale``, ``embedding_mean`` and ``embedding_scale`` ([d] each) are stored with the
    weights; :meth:`set_scales` fills them in before fitting. The token term starts at zero.
    """

    hidden_mean: torch.Tensor
    hidden_scale: torch.Tensor
    embedding_mean: torch.Tensor
    embedding_scale: torch.Tensor

    def __init__(self, config: GammaPredictorConfig) -> None:
        super().__init__()
        self.config = config
        size, rank = config.hidden_size, config.rank
        for name in ("hidden", "embedding"):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_scale", torch.ones(size))
        self.trunk = nn.Linear(size, config.width)
        self.heads = nn.Linear(config.width, 2)
        self.token_query = nn.Linear(size, 2 * rank)
        self.token_key = nn.Linear(size, rank, bias=False)
        nn.init.zeros_(self.token_query.weight)
        nn.init.zeros_(self.token_query.bias)

    @torch.no_grad()
    def set_scales(self, hidden: torch.Tensor, output_embedding: torch.Tensor) -> None:
        """Take means and standard deviations from hidden states [N, d] and the output embedding [V, d]."""
        for name, rows in (("hidden", hidden), ("embedding", output_embedding)):
            rows = rows.to(self.hidden_mean.dtype)
            getattr(self, f"{name}_mean").copy_(rows.mean(0))
            getattr(self, f"{name}_scale").copy_(rows.std(0, correction=0).clamp(min=1e-6))

    def state_parameters(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(concentration, rate)``, [B] each, for hidden states [B, d] whatever the next token."""
        return _positive(self._state(self._standard(hidden)))

    @torch.no_grad()
    def input_map(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``(weight, bias)``, [width + 2 rank, d] and [width + 2 rank], float64 (float32 on devices without it): the
        first layer of trunk and token query as one affine map of the hidden state. The standardisation before them is
        affine too, so that all of it folds in exactly."""
        work = torch.float32 if self.hidden_mean.device.type == "mps" else torch.float64
        weight = torch.cat([self.trunk.weight, self.token_query.weight]).to(work)
        weight = weight / self.hidden_scale.to(work)
        bias = torch.cat([self.trunk.bias, self.token_query.bias]).to(work)
        return weight, bias - weight @ self.hidden_mean.to(work)

    @torch.no_grad()
    def guidance_head(self, output_embedding: torch.Tensor) -> GuidanceHead:
        """What follows that map, for a model's output embedding [V, d]; in the predictor's dtype."""
        table = self.candidate_table(output_embedding).contiguous()
        return GuidanceHead(self.heads.weight.detach(), self.heads.bias.detach(), table, FLOOR)

    def candidate_table(self, output_embedding: torch.Tensor) -> torch.Tensor:
        """[V, rank] what the token term needs of each row of the output embedding [V, d]; once per model."""
        return self.token_key((output_embedding - self.embedding_mean) / self.embedding_scale)

    def candidate_parameters(
        self, hidden: torch.Tensor, table_rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``(concentration, rate)``, [B, k] each, given each candidate.

        Args:
            hidden: [B, d].
            table_rows: [B, k, rank], rows of :meth:`candidate_table` at the candidates' ids.
        """
        standard = self._standard(hidden)
        query = self.token_query(standard).unflatten(-1, (2, self.config.rank))
        # [B, k, rank] x [B, rank, 2] -> [B, k, 2]
        moved = table_rows @ query.transpose(-1, -2)
        return _positive(self._state(standard)[:, None, :] + moved)

    def fit_log_prob(
        self, concentration: torch.Tensor, rate: torch.Tensor, tokens_left: torch.Tensor
    ) -> torch.Tensor:
        """log P(L <= tokens_left + 1): the thought ends within ``tokens_left`` more tokens, its close extra.

        Args:
            concentration, rate: Gamma parameters of log(1 + L), broadcast with
            tokens_left: content tokens still allowed, integer or floating point; below 0 counts as 0.
        """
        bound = tokens_left.to(concentration.dtype).clamp(min=0) + 2
        return log_gamma_cdf(concentration, rate, bound.log())

    def quantile(
        self, concentration: torch.Tensor, rate: torch.Tensor, q: float | torch.Tensor
    ) -> torch.Tensor:
        """The ``q``-quantile of L in tokens (the close included), at least 1.

        Wilson-Hilferty's cube-root normal approximation, never below the lower bound (q Gamma(a + 1))^(1/a), which is
        the quantile itself as a goes to 0. Within one per cent of log(1 + L) for a >= 3 and levels of 5 to 95 %.
        """
        log_level: float | torch.Tensor
        if isinstance(q, torch.Tensor) or torch.compiler.is_compiling():
            level = q.to(concentration) if isinstance(q, torch.Tensor) else concentration.new_full((), q)
            level = level.clamp(1e-6, 1 - 1e-6)
            normal, log_level = torch.special.ndtri(level), level.log()
        else:  # of a number on the host, by the host
            number = min(max(q, 1e-6), 1 - 1e-6)
            normal, log_level = NormalDist().inv_cdf(number), math.log(number)
        ninth = 1 / (9 * concentration)
        root = (1 - ninth + normal * ninth.sqrt()).clamp(min=0)
        bound = ((log_level + torch.lgamma(concentration + 1)) / concentration).exp()
        x = torch.maximum(concentration * root**3, bound) / rate
        return torch.expm1(x.clamp(max=20.8)).clamp(1.0, MAX_TOKENS)

    def median(self, concentration: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        """Median of L in tokens, the close included, at least 1."""
        return self.quantile(concentration, rate, 0.5)

    def _standard(self, hidden: torch.Tensor) -> torch.Tensor:
        return (hidden - self.hidden_mean) / self.hidden_scale

    def _state(self, standard: torch.Tensor) -> torch.Tensor:
        """[B, 2] before the softplus."""
        return self.heads(F.silu(self.trunk(standard)))


def _positive(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    concentration, rate = (F.softplus(raw) + FLOOR).unbind(-1)
    return concentration, rate


def length_nll(concentration: torch.Tensor, rate: torch.Tensor, remaining: torch.Tensor) -> torch.Tensor:
    """Negative log-density of log(1 + L) at L = ``remaining`` (tokens, the close included), elementwise."""
    x = remaining.to(concentration.dtype).log1p()
    return torch.lgamma(concentration) - concentration * rate.log() - (concentration - 1) * x.log() + rate * x
