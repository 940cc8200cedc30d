"""Budgets in SGLang: a custom logit processor, with the controller that transformers' ``generate`` has.

The server has to have budgetctl installed, and is started with ``--enable-custom-logit-processor
--disable-overlap-schedule`` and with ``BUDGETCTL_MODEL`` (a directory) and, for efforts and steering,
``BUDGETCTL_PREDICTOR`` in its environment. A client sends :func:`processor_string` and the knobs of
:func:`custom_params` with each request. The processor is sent by name, so nothing but its name is unpickled.

With overlapped scheduling SGLang samples before it knows the token of the step before, and with speculative decoding
it does not say which tokens a row's draft has. A function of the prefix cannot be right there, so such requests are
ended with an error instead of going over their budget.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from budgetctl.budget import RowBudgets
from budgetctl.closing import Boundaries
from budgetctl.controller import BudgetController
from budgetctl.delimiters import ThinkingDelimiters, find_delimiters
from budgetctl.errors import BudgetctlError, BudgetError
from budgetctl.forecast import LengthForecast
from budgetctl.guidance import guided_temperature
from budgetctl.ledger import Predictions
from budgetctl.on_device import to_device

if TYPE_CHECKING:
    CustomLogitProcessor: Any = object
else:
    try:
        from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor
    except ImportError:  # a client needs no SGLang
        CustomLogitProcessor = object

#: What a request may set in ``custom_params``.
KNOBS = ("effort", "thinking_budget", "min_thinking_tokens", "answer_reserve")
#: Requests whose forecast is kept.
KEPT = 1 << 14
logger = logging.getLogger(__name__)


class RequestMemory(Predictions):
    """Stands in for a controller's ``PredictionTable``, by request: its rows move, and their padding changes."""

    def __init__(self) -> None:
        #: Ids of the requests of the coming step, one a row.
        self.names: list[str] = []
        self._values: OrderedDict[str, torch.Tensor] = OrderedDict()

    def store(self, keys: torch.Tensor, values: torch.Tensor, where: torch.Tensor) -> None:
        """Keep ``values`` [B] of the rows of ``where`` [B] bool."""
        kept = torch.where(where, values, self.lookup(keys, torch.full_like(values, torch.nan)))
        for name, value in zip(self.names, kept.unbind(), strict=True):
            self._values[name] = value
            self._values.move_to_end(name)
        while len(self._values) > KEPT:
            self._values.popitem(last=False)

    def lookup(self, keys: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
        """[B] stored values; ``otherwise`` [B] where there is none."""
        known = [self._values.get(name, otherwise[row]) for row, name in enumerate(self.names)]
        found = torch.stack(known).to(otherwise)
        return torch.where(found.isnan(), otherwise, found)


class SglangBudgets:
    """Markers, boundaries and forecast of the model that a server runs; one a process.

    Args:
        delimiters: markers of the thought.
        boundaries: line and sentence ends by token.
        forecast: the remaining-length forecast; without it efforts are refused and nothing is steered.
    """

    def __init__(
        self, delimiters: ThinkingDelimiters, boundaries: Boundaries, forecast: LengthForecast | None = None
    ) -> None:
        self.delimiters, self.boundaries, self.forecast = delimiters, boundaries, forecast
        self._predictions = RequestMemory()
        self._controller: BudgetController | None = None
        self._asked: tuple[Any, ...] = ()

    @classmethod
    def from_directory(cls, model: str | Path, predictor: str | Path | None = None) -> SglangBudgets:
        """From a model's directory: its tokenizer and, with a predictor, its output embedding alone.

        Raises:
            BudgetctlError: for a directory without weights, or a predictor of another model.
        """
        from transformers import AutoConfig, AutoTokenizer, GenerationConfig

        tokenizer = AutoTokenizer.from_pretrained(model)
        config = AutoConfig.from_pretrained(model)
        text = config.get_text_config()
        try:
            ends = GenerationConfig.from_pretrained(model).eos_token_id
        except OSError:
            ends = text.eos_token_id
        delimiters = find_delimiters(tokenizer, eos_token_id=ends)
        boundaries = Boundaries.from_tokenizer(tokenizer, text.vocab_size)
        if predictor is None:
            return cls(delimiters, boundaries)
        from budgetctl.integrations.output_head import forecast_of

        return cls(delimiters, boundaries, forecast_of(Path(model), text, predictor, delimiters))

    def steer(self, logits: torch.Tensor, rows: Sequence[tuple[Any, Mapping[str, Any]]]) -> torch.Tensor:
        """Steered logits [B, V] of requests (SGLang's ``Req``) with their knobs, one a row.

        Raises:
            BudgetError: for knobs that make no sense.
        """
        prefixes = [[*request.origin_input_ids, *request.output_ids] for request, _ in rows]
        width = max(map(len, prefixes))
        padded = [[0] * (width - len(prefix)) + prefix for prefix in prefixes]
        input_ids = to_device(torch.tensor(padded), logits.device)
        written = to_device(torch.tensor([len(request.output_ids) for request, _ in rows]), logits.device)
        controller = self._controller_of(rows)
        self._predictions.names = [request.rid for request, _ in rows]
        controller.prompt_length = width - written
        return controller(input_ids, logits)

    def check(self, knobs: Mapping[str, Any]) -> None:
        """Refuse one request's knobs.

        Raises:
            BudgetError: for a value that makes no sense, or that is no single value.
        """
        for name, value in knobs.items():
            if isinstance(value, Sequence) and not isinstance(value, str):
                raise BudgetError(f"{name}={value!r} in one request: expected a single value; give one")
        self._build([{name: knobs.get(name) for name in KNOBS} | {"max_new_tokens": None}], [1.0], True)

    def _controller_of(self, rows: Sequence[tuple[Any, Mapping[str, Any]]]) -> BudgetController:
        constants, temperatures, greedy = [], [], True
        for request, params in rows:
            sampling = request.sampling_params
            own = {name: params.get(name) for name in KNOBS}
            constants.append(own | {"max_new_tokens": sampling.max_new_tokens})
            takes_best = sampling.top_k == 1 or sampling.temperature == 0  # SGLang writes 0 as top_k 1
            temperatures.append(guided_temperature(sampling.temperature, not takes_best))
            greedy = greedy and takes_best
        asked = (constants, temperatures, greedy)
        if self._controller is None or asked != self._asked:
            self._controller, self._asked = self._build(*asked), asked
        return self._controller

    def _build(
        self, constants: list[dict[str, Any]], temperatures: list[float], greedy: bool
    ) -> BudgetController:
        knobs: dict[str, Any] = {
            name: [own[name] for own in constants] for name in (*KNOBS, "max_new_tokens")
        }
        controller = BudgetController(
            self.delimiters,
            forecast=self.forecast,
            boundaries=self.boundaries,
            prompt_length=0,
            temperature=temperatures,
            greedy=greedy,
            **knobs,
        )
        controller.first = True  # custom processors see the model's own logits
        controller.predictions = self._predictions  # type: ignore[assignment]
        return controller


class BudgetLogitProcessor(CustomLogitProcessor):
    """What SGLang calls at each step with logits [B, V] and the ``custom_params`` of each row."""

    def __call__(
        self, logits: torch.Tensor, custom_param_list: list[dict[str, Any]] | None = None
    ) -> torch.Tensor:
        """Logits [B, V]; rows without a knob, and prompts that are still read in chunks, are the same bits."""
        found = []
        for row, params in enumerate(custom_param_list or []):
            if not params or all(params.get(name) is None for name in KNOBS):
                continue
            request = params.get("__req__")
            if request is not None and getattr(request, "inflight_middle_chunks", 0) <= 0:
                found.append((row, request, params))
        if not found:
            return logits
        try:
            _check_schedule(found)
            budgets = server_budgets()
        except (BudgetctlError, OSError) as error:
            for _, request, _ in found:
                _end(request, str(error))
            return logits
        kept = []
        for row, request, params in found:
            try:
                if not len(request.output_ids):  # once a request
                    budgets.check({name: params.get(name) for name in KNOBS})
                kept.append((row, request, params))
            except BudgetError as error:
                _end(request, str(error))
        if not kept:
            return logits
        at = to_device(torch.tensor([row for row, _, _ in kept]), logits.device)
        steered = budgets.steer(logits[at], [(request, params) for _, request, params in kept])
        return logits.index_copy(0, at, steered.to(logits.dtype))


_server: SglangBudgets | None = None


def use(budgets: SglangBudgets | None) -> None:
    """What this process steers with; None to make it from the environment again."""
    global _server
    _server = budgets


def server_budgets() -> SglangBudgets:
    """The budgets of this process, at first made from ``BUDGETCTL_MODEL`` and ``BUDGETCTL_PREDICTOR``.

    Raises:
        BudgetctlError: without ``BUDGETCTL_MODEL``, or for a predictor of another model.
    """
    if _server is None:
        model = os.environ.get("BUDGETCTL_MODEL")
        if not model:
            raise BudgetctlError(
                "BUDGETCTL_MODEL is not set: expected the served model's directory in the server's environment; set it"
            )
        use(SglangBudgets.from_directory(model, os.environ.get("BUDGETCTL_PREDICTOR")))
    assert _server is not None
    return _server


def processor_string() -> str:
    """What a client sends as ``custom_logit_processor``: the processor by name, as SGLang's ``to_str`` writes it."""
    return json.dumps({"callable": pickle.dumps(BudgetLogitProcessor).hex()})


def custom_params(**knobs: Any) -> dict[str, Any]:
    """What a client sends as ``custom_params``; ``knobs`` are those of :data:`KNOBS`.

    Raises:
        BudgetError: for a knob that is unknown, or a value that makes no sense.
    """
    for name in knobs:
        if name not in KNOBS:
            raise BudgetError(
                f"{name!r} is no knob of a request: expected some of {', '.join(KNOBS)}; drop it"
            )
    RowBudgets.build(knobs.get("effort"), knobs.get("thinking_budget"))
    return {name: value for name, value in knobs.items() if value is not None}


def _check_schedule(found: Sequence[tuple[int, Any, Mapping[str, Any]]]) -> None:
    names = [request.rid for _, request, _ in found]
    if len(set(names)) < len(names):
        raise BudgetctlError(
            "several draft tokens a row: expected no speculative decoding, which hides the drafts from a logit "
            "processor; start the server without it"
        )
    if _overlaps():
        raise BudgetctlError(
            "the scheduler overlaps steps, so the latest token is unknown here: expected --disable-overlap-schedule; "
            "start the server with it"
        )


def _overlaps() -> bool:
    """Whether this process is an SGLang scheduler that overlaps steps."""
    try:
        from sglang.srt.runtime_context import get_schedule

        return not get_schedule().disable_overlap_schedule
    except (ImportError, AttributeError, ValueError):  # not there, or no scheduler's process
        return False


def _end(request: Any, message: str) -> None:
    """End one request with an error, and leave the others of the step alone."""
    logger.error("request %s: %s", request.rid, message)
    try:
        from sglang.srt.managers.schedule_batch import FINISH_ABORT
    except ImportError:
        request.to_finish = message
        return
    request.to_finish = FINISH_ABORT(message)
