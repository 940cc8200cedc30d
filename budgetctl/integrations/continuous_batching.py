"""Budgets in transformers' continuous batching: ``generate_batch`` and ``ContinuousBatchingManager``, one limit a request.

The controller is the one of ``generate``. What continuous batching does not give a processor, the rows' prefixes, is
kept on the device by :class:`RequestTable`. CUDA graphs and ``torch.compile`` of the step are turned off, since the
controller's work depends on which requests are in the batch; asynchronous batching stays as it is.
"""

from __future__ import annotations

import copy
import operator
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from transformers import GenerationConfig, LogitsProcessor
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
)

from budgetctl.controller import BudgetController
from budgetctl.errors import BudgetError
from budgetctl.guidance import guided_temperature
from budgetctl.integrations.batching_support import PLAN_KNOBS, REQUEST_KNOBS
from budgetctl.integrations.request_table import KEPT, PastMemory, RequestTable, SlotMemory
from budgetctl.on_device import to_device
from budgetctl.plan.knob import one_plan
from budgetctl.raw_logits import RawLogits
from budgetctl.telemetry import ThoughtReport, report_sequences


class Installed(Protocol):
    """What is used of :class:`budgetctl.integrations.transformers.Installation`."""

    model: Any
    forecast: Any

    def controller_for(
        self, config: GenerationConfig, prompt_length: int, prompts: int, **rows: object
    ) -> BudgetController: ...


class StepInputs(LogitsProcessor):
    """Stands first in the list and keeps what only a plain processor sees: each row's last token, the model's logits."""

    supports_continuous_batching = True

    def __init__(self) -> None:
        self.tokens = torch.zeros(0, dtype=torch.int64)
        self.logits = torch.zeros(0, 0)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores [B, V] as they are; ``input_ids`` [B] are the last tokens."""
        self.tokens, self.logits = input_ids, scores
        return scores


class BatchedBudgets(ContinuousBatchingLogitsProcessor):
    """Applies a :class:`BudgetController` to the rows of a continuous batch that have a limit.

    Args:
        installation: what ``budgetctl.install`` returned.
        config: the manager's generation config; its knobs hold for requests that give none.

    Raises:
        BudgetError: for knobs of ``config`` that make no sense.
    """

    supported_kwargs: dict[str, type] = dict.fromkeys((*REQUEST_KNOBS, *PLAN_KNOBS), object)
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self, installation: Installed, config: GenerationConfig) -> None:
        self._installation = installation
        self._config = copy.copy(config)
        self._pad = config.pad_token_id if isinstance(config.pad_token_id, int) else 0
        self.inputs = StepInputs()
        self._table: RequestTable | None = None
        self._requests: OrderedDict[str, dict[str, object]] = OrderedDict()
        self._batch: list[tuple[int, Any, int]] = []
        self._states: list[Any] = []
        self._controller: BudgetController | None = None
        self._prompts = torch.zeros(0, dtype=torch.int64)
        self.check({}, config.max_new_tokens)

    def check(self, knobs: Mapping[str, object], max_new_tokens: int | None) -> None:
        """Refuse what one request asks for, before anything runs.

        Raises:
            BudgetError: for a value that makes no sense, or that is no single value.
        """
        constants = self._constants(knobs, max_new_tokens)
        for name, value in constants.items():
            if isinstance(value, torch.Tensor) or (
                isinstance(value, Sequence) and not isinstance(value, str | bytes)
            ):
                raise BudgetError(
                    f"{name}={value!r} in one request: expected a single value; give each request its own"
                )
        self._installation.controller_for(self._config, 0, 1, **constants)

    # What transformers calls, in this order at every step.

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """Nothing is passed in the tensor [1] of arguments."""
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        """Note which requests the coming step is for; on the host, as everywhere in continuous batching."""
        self._batch = []
        for row, request in enumerate(requests_with_new_token):
            state = request.state
            constants = self._requests.get(state.request_id)
            if constants is None or not state.generated_tokens:  # a request id may be given again
                constants = self._constants(state.logit_processor_kwargs, _total_new_tokens(state))
                self._requests[state.request_id] = constants
                if len(self._requests) > KEPT:
                    self._requests.popitem(last=False)
            if self._limited(constants):
                # Counts what is scheduled, so it is right also before the host knows the last token.
                self._batch.append((row, state, state.position_offset))
        return torch.zeros(len(requests_with_new_token), dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """Steered logits [B, V]; rows without a limit are the same bits."""
        if not self._batch:
            return scores
        device = scores.device
        rows, states, lengths = (list(column) for column in zip(*self._batch, strict=True))
        if self._table is None:
            forecast = self._installation.forecast
            self._table = RequestTable(device, torch.float32 if forecast is None else forecast.dtype)
        controller = self._controller_of(states, device)
        slots = self._table.locate(states, lengths)
        row, slot, length = to_device(torch.tensor([rows, slots, lengths]), device)
        self._table.write_last(slot, length, self.inputs.tokens[row])
        width = max(lengths)
        input_ids = self._table.prefixes(slot, length, width, self._pad)
        controller.prompt_length = width - (length - self._prompts)
        memory = controller.close_log
        assert isinstance(memory, SlotMemory)
        memory.slots, memory.lengths = slot, length
        if controller.forecast is not None and self.inputs.logits is not scores:
            controller.raw = RawLogits()
            controller.raw(input_ids, self.inputs.logits[row])
        return scores.index_copy(0, row, controller(input_ids, scores[row]))

    def report(self, request_id: str, prompt_ids: Sequence[int], generated: Sequence[int]) -> ThoughtReport:
        """The account of one request, running or finished (host sync).

        Raises:
            BudgetError: when there was no such request here, or it is forgotten.
        """
        constants = self._requests.get(request_id)
        if constants is None:
            raise BudgetError(
                f"no report of request {request_id!r}: expected one of the latest {KEPT} of this manager; "
                "ask for reports before the next manager is made"
            )
        controller = self._installation.controller_for(self._config, 0, 1, **constants)
        record = self._table.record_of(request_id) if self._table is not None else None
        sequence = torch.tensor([[*prompt_ids, *generated]])
        if record is not None:
            past = PastMemory(record)
            controller.predictions = past  # type: ignore[assignment]
            past.keys = controller.account(sequence, len(prompt_ids))[2][0]
            controller.close_log = past  # type: ignore[assignment]
        return report_sequences(controller, sequence, len(prompt_ids))[0]

    def _constants(self, knobs: Mapping[str, object], max_new_tokens: int | None) -> dict[str, object]:
        """The knobs of one request, the config's where it has none."""
        constants: dict[str, object] = {"max_new_tokens": max_new_tokens}
        for name in REQUEST_KNOBS:
            value = knobs.get(name)
            constants[name] = getattr(self._config, name, None) if value is None else value
        for name in PLAN_KNOBS:
            value = knobs.get(name)
            constants[name] = getattr(self._config, name, None) if value is None else value
        constants["plan"] = one_plan(constants["plan"])
        sampled = bool(self._config.do_sample)
        warmth: Any = knobs.get("temperature", self._config.temperature)
        greedy = not sampled or knobs.get("top_k", self._config.top_k) == 1
        constants |= {"greedy": greedy, "temperature": guided_temperature(warmth or None, not greedy)}
        return constants

    def _limited(self, constants: Mapping[str, object]) -> bool:
        asked = any(constants[name] not in (None, "auto") for name in REQUEST_KNOBS)
        asked = asked or any(constants[name] not in (None, False) for name in PLAN_KNOBS)
        return asked or getattr(self._config, "max_extensions", None) is not None

    def _controller_of(self, states: list[Any], device: torch.device) -> BudgetController:
        """The controller of these rows; built anew when other requests are in the batch than in the step before."""
        same = len(states) == len(self._states) and all(map(operator.is_, states, self._states))
        if self._controller is None or not same:
            requests = [self._requests[state.request_id] for state in states]
            columns = {name: [request[name] for request in requests] for name in requests[0]}
            greedy = to_device(torch.tensor(columns.pop("greedy")), device)
            self._controller = self._installation.controller_for(self._config, 0, len(states), **columns)
            assert self._table is not None
            memory = SlotMemory(self._table, greedy)
            self._controller.predictions = memory  # type: ignore[assignment]
            self._controller.close_log = memory  # type: ignore[assignment]
            prompts = [state._true_initial_tokens or len(state.initial_tokens) for state in states]
            self._prompts = to_device(torch.tensor(prompts), device)
            self._states = states
        return self._controller


def report_outputs(budgets: BatchedBudgets, outputs: Mapping[str, Any]) -> dict[str, ThoughtReport]:
    """Accounts of what ``generate_batch`` or a manager returned: ``GenerationOutput`` by request id."""
    return {
        name: budgets.report(name, output.prompt_ids, output.generated_tokens)
        for name, output in outputs.items()
    }


def _total_new_tokens(state: Any) -> int | None:
    """``max_new_tokens`` as the request asked for it, also when it was sent back to the queue with tokens written."""
    if state.max_new_tokens is None or not state._true_initial_tokens:
        return state.max_new_tokens
    return state.max_new_tokens + len(state.initial_tokens) - state._true_initial_tokens
