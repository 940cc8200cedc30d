"""The last hidden state, recovered from logits or read by a hook.

Logits are W h with W tall and of full rank, so h is a linear map of a few thousand of them. Rows of W and the logits
are centred, so that what shifts a whole row (the log-softmax of beam search) cancels.
"""

from __future__ import annotations

from types import TracebackType

import torch
from torch import nn

from budgetctl.errors import PredictorError
from budgetctl.predictors.anchors import choose_anchors

#: Banned anchors of a row that are filled in exactly; further ones stand at the row's mean.
MAX_BANNED = 32


class LogitsHiddenState:
    """Hidden state h [B, d] from logits [B, V] = scale (W h + bias), or softcap tanh of that over softcap.

    Anchors at -inf (tokens banned before) are missing values of the least-squares problem: the first ``MAX_BANNED`` of
    a row are solved for, which is exact, in one small linear system per row and without any host sync. Shifts
    of a row change nothing, unless the model caps its logits: the cap is inverted, so those must be raw.

    Args:
        output_embedding_weight: [V, d], floating point.
        bias: [V] of the output embedding.
        scale: factor the model applies to its logits.
        softcap: the model's final soft cap c in c tanh(z / c).
        anchors: token ids, more than d; :func:`choose_anchors` by default.
        dtype: float32 or float64, of the computation and the result. The map itself is made in float64.

    Raises:
        PredictorError: when the weight is not floating point or there are too few anchors.
    """

    def __init__(
        self,
        output_embedding_weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        scale: float = 1.0,
        softcap: float | None = None,
        anchors: torch.Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        weight = output_embedding_weight.detach()
        if not weight.is_floating_point():
            raise PredictorError(
                f"the output embedding is of type {weight.dtype}: expected floating point; "
                "load the model without quantising its output embedding"
            )
        anchors = choose_anchors(weight) if anchors is None else anchors
        if len(anchors) <= weight.shape[1]:
            raise PredictorError(
                f"{len(anchors)} anchor tokens: expected more than the hidden size {weight.shape[1]}, or the hidden "
                "state is not determined by their logits; use more anchors, or a model with a larger vocabulary"
            )
        self.anchors = anchors.to(weight.device)
        vocabulary = torch.arange(weight.shape[0], device=weight.device)
        self._count = len(anchors)
        self._everything = len(anchors) == len(weight) and bool((self.anchors == vocabulary).all())
        self.scale = scale
        self.softcap = softcap
        self.dtype = dtype
        work = torch.float32 if weight.device.type == "mps" else torch.float64
        rows = weight[self.anchors].to(work)
        centred = rows - rows.mean(0)
        self._bias = None if bias is None else bias.detach()[self.anchors].to(dtype)
        self._rows = centred.to(dtype)
        #: [K, d], the transposed pseudo-inverse: h = (anchor logits, centred) @ map.
        self.map = _pseudo_inverse(centred).T.contiguous().to(dtype)

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """h [B, d] for logits [B, V]."""
        centred, banned = self.centred(self.anchor_logits(scores))
        hidden = centred @ self.map
        return hidden + self._missing(banned, hidden)

    def anchor_logits(self, scores: torch.Tensor) -> torch.Tensor:
        """[B, K] of logits [B, V], in ``dtype``."""
        if not self._everything:
            scores = scores.index_select(1, self.anchors)
        elif scores.shape[1] > self._count:
            scores = scores[:, : self._count]
        return scores if scores.dtype == self.dtype else scores.to(self.dtype)

    @property
    def everything(self) -> bool:
        """Whether all logits are anchors, in order."""
        return self._everything

    @property
    def plain(self) -> bool:
        """Whether logits are W h as they are, without cap, scale and bias."""
        return self.softcap is None and self.scale == 1 and self._bias is None

    def linear(self, logits: torch.Tensor) -> torch.Tensor:
        """W h [B, K] of anchor logits [B, K] without a ban: cap, scale and bias undone."""
        if self.softcap is not None:
            # The largest values below 1 keep atanh finite where the model's cap is saturated.
            logits = self.softcap * (logits / self.softcap).clamp(-1 + 1e-6, 1 - 1e-6).atanh()
        if self.scale != 1:
            logits = logits / self.scale
        return logits if self._bias is None else logits - self._bias

    def centred(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """W h less its mean over the anchors that are not banned, [B, K], and which are banned, [B, K] bool; those
        stand at the mean."""
        finite = logits.abs() < torch.inf
        banned = ~finite
        logits = self.linear(logits.masked_fill(banned, 0.0))
        present = finite.to(self.dtype)
        mean = (logits * present).sum(1, keepdim=True) / present.sum(1, keepdim=True).clamp(min=1)
        return (logits - mean) * present, banned

    def _missing(self, banned: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """[B, d] what the banned anchors [B, K] would add to ``hidden``, which was found with zeros for them.

        With the hat matrix H of the regression, fitted values at the banned anchors b are consistent when
        x = (H y)_b + H_bb x, y the known values.
        """
        slots = min(MAX_BANNED, banned.shape[1] - self._rows.shape[1] - 1)
        if slots < 1:
            return torch.zeros_like(hidden)
        taken, at = banned.to(torch.uint8).topk(slots, dim=1)
        taken = taken.to(self.dtype)[..., None]
        rows, columns = self._rows[at] * taken, self.map[at] * taken
        # [B, slots, slots]; 1 / K is the share of the mean.
        hat = rows @ columns.transpose(1, 2) + taken * taken.transpose(1, 2) / banned.shape[1]
        system = torch.eye(slots, dtype=self.dtype, device=hat.device) * (1 + 1e-6) - hat
        values = torch.linalg.solve_ex(system, rows @ hidden[..., None]).result
        return (values * columns).sum(1)


class HookHiddenState:
    """Reads what enters ``model``'s output embedding, exactly. A context manager, or :meth:`close` it.

    Args:
        model: a causal language model with ``get_output_embeddings``.
        every_position: keep all positions [B, T, d] in ``hidden``, not the last alone [B, d].
        skip_logits: let the model compute the logits of the last position only (saves memory on long inputs).
    """

    def __init__(self, model: nn.Module, *, every_position: bool = False, skip_logits: bool = False) -> None:
        self.hidden: torch.Tensor | None = None
        self._every_position = every_position
        self._skip_logits = skip_logits
        head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
        self._handle = head.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        states = inputs[0].detach()
        self.hidden = states if self._every_position else states[:, -1]
        return (inputs[0][:, -1:], *inputs[1:]) if self._skip_logits else None

    def close(self) -> None:
        """Take the hook off the model."""
        self._handle.remove()

    def __enter__(self) -> HookHiddenState:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@torch.no_grad()
def recovery_error(
    model: nn.Module,
    source: LogitsHiddenState,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
) -> float:
    """Largest relative error |h - h_hook| / |h_hook| of the recovered state over the positions of a probe [B, T]."""
    with HookHiddenState(model, every_position=True) as hook:
        logits = model(input_ids=input_ids, attention_mask=attention_mask).logits
    assert hook.hidden is not None
    exact = hook.hidden.flatten(0, 1).to(source.dtype)
    found = source(logits.flatten(0, 1)).to(exact.device)
    error = (found - exact).norm(dim=1) / exact.norm(dim=1).clamp(min=torch.finfo(exact.dtype).tiny)
    if attention_mask is not None:
        error = error[attention_mask.flatten().bool()]
    return float(error.max())


def _pseudo_inverse(rows: torch.Tensor) -> torch.Tensor:
    """[d, K] of centred rows [K, d], through the Gram matrix; directions without variance are left at zero."""
    gram = rows.T @ rows
    values, vectors = torch.linalg.eigh(gram)
    keep = values > values[-1] * rows.shape[1] * torch.finfo(rows.dtype).eps
    inverse = torch.where(keep, 1 / values.masked_fill(~keep, 1.0), 0.0)
    return (vectors * inverse) @ (vectors.T @ rows.T)
