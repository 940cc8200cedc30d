"""``BudgetProcessor``: thinking budgets as a logits processor of vLLM, for both of its model runners."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from budgetctl.integrations.vllm.counters import Counters, counters_of_environment, counts_here
from budgetctl.integrations.vllm.first_runner import HostRows
from budgetctl.integrations.vllm.knobs import RequestLimits, check_request, limits_of
from budgetctl.integrations.vllm.quiet_rows import QuietWatch
from budgetctl.integrations.vllm.second_runner import rows_of
from budgetctl.integrations.vllm.served_model import ServedModel, misfit, predictor_path, read_served_model
from budgetctl.integrations.vllm.slots import SlotLimits
from budgetctl.integrations.vllm.steering import EngineController
from budgetctl.integrations.vllm.step_rows import StepRows
from budgetctl.integrations.vllm.tally import Facts
from budgetctl.kernels.host_reads import may_look

#: vLLM's own handler and format.
logger = logging.getLogger("vllm.budgetctl")
#: Share of the logits that no hidden state explains, beyond which the forecast is not to be trusted.
MAX_MISFIT = 0.05


class BudgetProcessor:
    """Keeps the thought of each request inside its budget.

    A request says what it wants in ``extra_args`` (``vllm_xargs`` over HTTP): ``effort``, ``thinking_budget``,
    ``min_thinking_tokens``, ``thinking_target``, ``target_tolerance``, ``answer_reserve``, with the meaning that they
    have in ``generate``. The length predictor is named by ``BUDGETCTL_PREDICTOR``. Logits of other requests pass as
    they are.

    What is done with a row is a function of its tokens and its logits. Calls are not counted: rows that are sampled and
    thrown away, rows that move, requests that are sent back and prefilled again, and rows of drafts need no care.

    Args:
        vllm_config: of the engine.
        device: of the logits; the second runner gives its request states here.
        is_pin_memory: of the first runner.
    """

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool | None = None) -> None:
        self._states = None if isinstance(device, torch.device | str) else device
        self._device = torch.device(device if self._states is None else self._states.device)
        self._counters: Sequence[Counters] = ()
        if counts_here():
            parallel = getattr(vllm_config, "parallel_config", None)
            self._counters = counters_of_environment(getattr(parallel, "data_parallel_rank", 0))
        self.serve(self.read_model(vllm_config))

    def serve(self, served: ServedModel) -> None:
        """Begin with a model; nothing is known of requests before."""
        self.served = served
        slots = 0 if self._states is None else self._states.max_num_reqs
        self._asked = np.zeros(slots, dtype=bool)
        self._limits = SlotLimits(max(slots, 1), self._device)
        spans = served.boundaries.spans
        self._rows = HostRows(
            self._device, served.delimiters, spans, self._limits_for, self._limits, served.context
        )
        self._controller = EngineController(
            served.delimiters, served.forecast, served.boundaries, self._limits, slots, self._device
        )
        if self._controller.quiet_step is not None and may_look(self._device):
            self._rows.watch = QuietWatch(
                served.delimiters,
                served.boundaries,
                self._controller.quiet_step,
                self._limits,
                self._device,
            )
        self._tally, self._facts = None, dict[int, Facts]()
        if self._counters:
            self._tally = self._rows.tally = self._controller.count(self._counters, self._device)
        self._measured = served.forecast is None
        self._told = False

    def read_model(self, vllm_config: Any) -> ServedModel:
        """What is known of the model; logged."""
        served = read_served_model(vllm_config, self._device)
        thought = served.delimiters
        logger.info("budgetctl: thoughts between %r and %r", thought.open_text, thought.close_text)
        if served.forecast is None:
            logger.info("budgetctl: no BUDGETCTL_PREDICTOR, so budgets are kept and nothing is steered")
        else:
            logger.info(
                "budgetctl: predictor %s; hidden states recovered from logits with a relative error of %.1e",
                predictor_path(),
                served.rounding_error,
            )
        return served

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse knobs that make no sense; vLLM answers with HTTP 400.

        Raises:
            BudgetError: which is a ``ValueError``.
        """
        check_request(sampling_params, has_predictor=predictor_path() is not None)

    def is_argmax_invariant(self) -> bool:
        """No: the likeliest token may change."""
        return False

    # The first runner: rows of a persistent batch, tokens on the host.

    def update_state(self, batch_update: Any) -> None:
        """Requests that come, go and move."""
        self._rows.update(batch_update)

    # The second runner: slots, tokens on the device.

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """A request takes the slot ``req_idx``; whether it has a limit."""
        assert self._states is not None
        prompt_length = int(self._states.prompt_len.np[req_idx])
        limits = self._limits_for(sampling_params, prompt_length)
        if self._tally is not None:
            # What is staged of the new request is not on the device yet.
            last = self._facts.get(req_idx)
            if last is not None:
                tokens, lengths = self._states.all_token_ids.gpu, self._states.total_len.gpu
                self._tally.replaced(last, tokens[req_idx], lengths[req_idx], req_idx)
            self._facts[req_idx] = Facts.of(
                sampling_params, limits, prompt_length, self.served.context, self.served.delimiters
            )
            self._tally.begin(req_idx)
        self._asked[req_idx] = limits.asked
        self._limits.write(req_idx, limits)
        return limits.asked

    def apply_staged_writes(self) -> None:
        """Copy the limits of new requests to the device."""
        self._limits.flush()

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Steered logits [rows, V] float32; those of requests without a limit are the same bits. ``ctx`` is the second
        runner's ``LogitsContext``."""
        if ctx is None:
            return self._apply_on_host(logits)
        found = rows_of(self._states, ctx, self._asked, len(logits))
        return logits if found is None else self._steer(found, logits)

    def _apply_on_host(self, logits: torch.Tensor) -> torch.Tensor:
        found = self._rows.step(logits.shape[0], quietly=self._controller.takes(logits))
        if found is None:
            return logits
        if found.rest is not None:
            self._controller.by_slot.grow(self._rows.slots)
            logits = self._steer(found.rest, logits)
            if self._controller.terms is not None:
                self._rows.note(self._controller.terms)
        if found.thoughts is not None:
            index = found.thoughts.index
            steered = self._controller.quietly(found.thoughts, logits if index is None else logits[index])
            logits = steered if index is None else logits.index_copy_(0, index, steered)
        if found.answers is not None and not found.answers.ban(logits):
            logits = self._steer(self._rows.read(len(logits), found.answers.requests), logits)
        return logits

    def _steer(self, found: StepRows, logits: torch.Tensor) -> torch.Tensor:
        scores = logits if found.index is None else logits[found.index]
        if not self._measured:
            self._measure(scores)
        steered = self._controller.step(found, scores)
        return steered if found.index is None else logits.index_copy_(0, found.index, steered)

    def _limits_for(self, sampling_params: Any, prompt_length: int | None) -> RequestLimits:
        left = None if prompt_length is None else self.served.context - prompt_length
        limits = limits_of(sampling_params, len(self.served.delimiters.forced_end_ids), left)
        if limits.needs_prediction and self.served.forecast is None and not self._told:
            self._told = True
            logger.error(
                "budgetctl: a request asks for an effort and this process has no predictor: expected BUDGETCTL_PREDICTOR in "
                "the environment of every process of the server; set it there too, until then efforts bound nothing"
            )
        return limits

    def _measure(self, scores: torch.Tensor) -> None:
        """Tell once whether the engine's logits are what the forecast takes them for (host sync)."""
        self._measured = True
        assert self.served.forecast is not None
        share = float(misfit(self.served.forecast.source, scores).max())
        if share <= MAX_MISFIT:
            logger.info("budgetctl: a hidden state explains the engine's logits to %.1e", share)
        else:
            logger.error(
                "budgetctl: no hidden state explains %.0f%% of the engine's logits: expected at most %.0f%%; an adapter or "
                "a penalty changes them, and efforts will miss their shares: serve the model that the predictor was fitted for",
                100 * share,
                100 * MAX_MISFIT,
            )
