"""From logits to what the length predictor works on, in one matrix product: the hidden state is not formed.

Recovering the hidden state is linear in the centred anchor logits, and the predictor's first layer is affine in the
hidden state, its standardisation included. So both are one map [K, n] with n = width + 2 rank (96 by default) columns
in place of the hidden size d: K (n - d) fewer numbers to read at every step, and no second product.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
import torch

from budgetctl.kernels.host_reads import array_of, may_look
from budgetctl.predictors.hidden_state import LogitsHiddenState

#: Multiplications of a matrix product that NumPy's library leaves to one thread, whatever PyTorch may use.
SMALL_PRODUCT = 1 << 17


class FoldedFeatures:
    """``weight`` h + ``bias`` [B, n] from logits [B, V], h as ``source`` recovers it.

    Banned anchors need h itself, to solve for what is missing (see :class:`LogitsHiddenState`). On the CPU the rows that
    have any take that way. Elsewhere looking would stop the device, so all rows take it unless the caller says that
    the logits are the model's own.

    Args:
        source: of the hidden state.
        weight: [n, d] floating point.
        bias: [n].
        dtype: of the result; the map is multiplied out in the dtype of ``weight`` and applied in that of ``source``.
    """

    def __init__(
        self, source: LogitsHiddenState, weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype
    ) -> None:
        self.source = source
        self.dtype = dtype
        #: [K, n].
        self.map = (source.map.to(weight.dtype) @ weight.T).to(source.dtype)
        self._weight = weight.T.contiguous().to(dtype)
        self._bias = bias.to(dtype)
        self._folded_bias = bias.to(source.dtype)

    def __call__(self, scores: torch.Tensor, own_logits: bool = False) -> torch.Tensor:
        """[B, n] for logits [B, V].

        Args:
            scores: floating point; -inf where a token was banned.
            own_logits: these are what the model put out, with no token banned. A banned one would still count as the
                row's mean, so that the result is finite.
        """
        logits = self.source.anchor_logits(scores)
        if may_look(scores.device):
            return self._on_host(scores, logits)
        return (
            self._folded(self.source.centred(logits)[0]) if own_logits else self.through_hidden_state(scores)
        )

    def of_few(self, scores: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
        """The same of a few rows [B, V] in the CPU's memory, in as few operations as there are; None where it takes more: a
        token is banned, or the logits are no plain product."""
        source = self.source
        if not source.plain or self.dtype != source.dtype or scores.dtype != self._arrays[0].dtype:
            return None
        weight, bias = self._arrays
        values = scores if source.everything else scores.take(self._anchors, axis=1)
        values = values[:, : len(weight)]
        with np.errstate(invalid="ignore"):
            # The map takes no notice of what all logits of a row share; a shift keeps that from costing digits.
            values = values - values[:, :1]
            if values.size * weight.shape[1] > SMALL_PRODUCT:
                product = self._folded(torch.from_numpy(values)).numpy()
            else:
                product = values @ weight
                product += bias
            return product if math.isfinite(np.add.reduce(product, axis=None)) else None

    def _on_host(self, scores: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The same by NumPy, whose operations on few numbers cost less."""
        weight, bias = self._arrays
        linear = self.source.linear(logits)
        values = array_of(linear)
        total = np.add.reduce(values, axis=1, keepdims=True)
        present = total if linear is logits else np.add.reduce(array_of(logits), axis=1, keepdims=True)
        whole = np.isfinite(present)
        banned = np.count_nonzero(whole) < len(whole)
        if banned:
            values = np.where(whole, values, 0)
            total = np.where(whole, total, 0)
        centred = values - total / values.shape[1]
        if centred.size * weight.shape[1] <= SMALL_PRODUCT:
            product = centred @ weight
            product += bias
            folded = torch.from_numpy(product)
            folded = folded if folded.dtype == self.dtype else folded.to(self.dtype)
        else:
            folded = self._folded(torch.from_numpy(centred))
        return (
            torch.where(torch.from_numpy(whole), folded, self.through_hidden_state(scores))
            if banned
            else folded
        )

    @cached_property
    def _anchors(self) -> np.ndarray[Any, Any]:
        return array_of(self.source.anchors)

    @cached_property
    def _arrays(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The map and its bias as NumPy sees them, on the CPU; the same memory."""
        return array_of(self.map), array_of(self._folded_bias)

    def _folded(self, centred: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self._folded_bias, centred, self.map).to(self.dtype)

    def through_hidden_state(self, scores: torch.Tensor) -> torch.Tensor:
        """The same [B, n] in two products, the hidden state between them; exact for banned anchors."""
        return torch.addmm(self._bias, self.source(scores).to(self.dtype), self._weight)
