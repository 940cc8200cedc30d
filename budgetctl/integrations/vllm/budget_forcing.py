"""``BudgetForcing``: a vLLM processor that writes the close at the end of a budget and changes nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.errors import BudgetError
from budgetctl.integrations.vllm.knobs import read_knobs
from budgetctl.integrations.vllm.processor import BudgetProcessor
from budgetctl.integrations.vllm.served_model import ServedModel
from budgetctl.integrations.vllm.steering import EngineController
from budgetctl.on_device import constant
from budgetctl.score_edits import force_tokens


class ForcedClose(EngineController):
    """Forces the close of a turn's first thought when its budget is spent. All other logits are the same bits."""

    @torch.no_grad()
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] for prefixes [B, T] int64 and logits [B, V]."""
        limits = self.limits.on(scores.shape[0], scores.device)
        state = self._reader.read(input_ids, self.prompt_length, None).state
        # In a second thought, the first and its close stand between the beginning and the tokens that count.
        first = state.thought_start + state.used == self.ends
        spent = state.thinking & first & limits.limited & (state.used >= limits.caps)
        forced_ids = constant(self.delimiters.forced_end_ids, scores.device)[state.close_progress]
        return force_tokens(scores, spent, forced_ids)


class BudgetForcing(BudgetProcessor):
    """Budget forcing (s1, arXiv 2501.19393, without its "Wait"): a thought of ``thinking_budget`` tokens is closed.

    A request gives ``thinking_budget`` in ``extra_args``. Unlike with :class:`BudgetProcessor` nothing is steered, closed
    early or banned, so that every token but a forced one is the model's own choice, and has the probability that the
    model gave it: what training by policy gradients samples. ``BUDGETCTL_PREDICTOR`` is not used.
    """

    #: The markers, where they are not those of the served tokenizer.
    delimiters: ThinkingDelimiters | None = None

    def serve(self, served: ServedModel) -> None:
        """Begin with a model; nothing is known of requests before."""
        # A close alone ends the thought: a tool call inside it is content here.
        delimiters = replace(self.delimiters or served.delimiters, tool_call_ids=())
        served = replace(served, forecast=None, delimiters=delimiters)
        super().serve(served)
        slots = 0 if self._states is None else self._states.max_num_reqs
        self._controller = ForcedClose(
            served.delimiters, None, served.boundaries, self._limits, slots, self._device
        )
        # All rows are read at every step.
        self._rows.watch = None

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse other knobs than ``thinking_budget``; vLLM answers with HTTP 400.

        Raises:
            BudgetError: which is a ``ValueError``.
        """
        super().validate_params(sampling_params)
        for name in read_knobs(sampling_params.extra_args):
            if name != "thinking_budget":
                raise BudgetError(
                    f"{name} in a request to budget forcing: expected thinking_budget alone; drop it, or serve with "
                    "budgetctl.integrations.vllm:BudgetLogitsProcessor"
                )
