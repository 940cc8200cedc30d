"""Gives a model's ``generate_batch`` and its ``ContinuousBatchingManager`` the knobs of :mod:`continuous_batching`."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any

from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.utils import logging

from budgetctl.budget import as_list
from budgetctl.errors import BudgetError
from budgetctl.integrations.batching_support import CALL_KNOBS, PLAN_KNOBS, REQUEST_KNOBS
from budgetctl.integrations.continuous_batching import BatchedBudgets, Installed
from budgetctl.plan.knob import read_plans

logger = logging.get_logger(__name__)


class KnobbedInputs(list[list[int]]):
    """Prompts for ``add_requests`` with the knobs of each; the length of a request's generation is one of them."""

    def __init__(self, prompts: Sequence[Sequence[int]], knobs: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(map(list, prompts))
        self.knobs = knobs


def add_hooks(model: Any, installation: Installed) -> None:
    """Make ``model.generate_batch`` and the managers that ``model`` makes take :data:`REQUEST_KNOBS` and :data:`PLAN_KNOBS`, and
    ``generate_batch`` :data:`CALL_KNOBS` too."""

    def init_continuous_batching(
        self: Any,
        generation_config: GenerationConfig | None = None,
        continuous_batching_config: ContinuousBatchingConfig | None = None,
        workload_hints: Any = None,
    ) -> Any:
        settings = continuous_batching_config
        if settings is None:
            settings = getattr(generation_config, "continuous_batching_config", None)
        manager = type(self).init_continuous_batching(
            self,
            generation_config=generation_config,
            continuous_batching_config=_without_graphs(settings),
            workload_hints=workload_hints,
        )
        _adopt(manager, self.generation_config if generation_config is None else generation_config)
        return manager

    def generate_batch(
        self: Any,
        inputs: Sequence[Sequence[int]],
        generation_config: GenerationConfig | None = None,
        *positional: Any,
        max_new_tokens: int | Sequence[int] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        knobs = {name: options.pop(name, None) for name in (*REQUEST_KNOBS, *PLAN_KNOBS)}
        knobs["plan"] = read_plans(knobs["plan"])  # a list of steps is one plan
        shared = {name: options.pop(name) for name in CALL_KNOBS if name in options}
        config = self.generation_config if generation_config is None else generation_config
        if shared:
            generation_config = config = copy.deepcopy(config)
            config.update(**shared)
        lengths = config.max_new_tokens if max_new_tokens is None else max_new_tokens
        rows = _rows_of({**knobs, "max_new_tokens": lengths}, len(inputs))
        checker = BatchedBudgets(installation, config)
        for row in rows:
            checker.check(row, row.get("max_new_tokens"))
        known = [row["max_new_tokens"] for row in rows if "max_new_tokens" in row]
        return type(self).generate_batch(
            self,
            KnobbedInputs(inputs, rows),
            generation_config,
            *positional,
            max_new_tokens=max(known, default=None),
            **options,
        )

    model.init_continuous_batching = MethodType(init_continuous_batching, model)
    model.generate_batch = MethodType(generate_batch, model)


def budgets_of(manager: Any) -> BatchedBudgets:
    """The processor of a ``ContinuousBatchingManager`` whose model has budgetctl installed.

    Raises:
        BudgetError: when it has none.
    """
    for processor in manager.logit_processor.logits_processor:
        if isinstance(processor, BatchedBudgets):
            return processor
    raise BudgetError(
        "this manager keeps no budgets: expected one made after budgetctl.install; install, then make the manager"
    )


def _adopt(manager: Any, config: GenerationConfig) -> None:
    """Let ``add_request`` refuse bad knobs, ``add_requests`` take one set of knobs a prompt, and make room for the
    processor's arguments (transformers counts only those that it has converted itself)."""
    budgets = budgets_of(manager)
    if "add_request" in vars(manager):  # a manager that is kept between calls, with its config
        for name in (*REQUEST_KNOBS, *PLAN_KNOBS, *CALL_KNOBS):
            asked, kept = getattr(config, name, None), getattr(manager.generation_config, name, None)
            if asked != kept:
                raise BudgetError(
                    f"{name}={asked!r} is set and the manager that is kept between calls has {kept!r}: expected the "
                    "same; end that manager first (persistent_manager=False)"
                )
        return
    manager.logit_processor.tensors_required += 1
    add_request, add_requests = manager.add_request, manager.add_requests
    signature = inspect.signature(add_request)

    def add_checked(self: Any, *positional: Any, **named: Any) -> Any:
        given = signature.bind(*positional, **named).arguments
        length = given.get("max_new_tokens")
        length = self.generation_config.max_new_tokens if length is None else length
        budgets.check(given.get("logit_processor_kwargs", {}), length)
        return add_request(*positional, **named)

    def add_all(self: Any, inputs: Sequence[Sequence[int]], *positional: Any, **named: Any) -> list[str]:
        if not isinstance(inputs, KnobbedInputs):
            return add_requests(inputs, *positional, **named)
        added: list[str] = []
        for prompt, knobs in zip(inputs, inputs.knobs, strict=True):
            added += add_requests([prompt], *positional, **{**named, **knobs})
        return added

    manager.add_request = MethodType(add_checked, manager)
    manager.add_requests = MethodType(add_all, manager)


def _without_graphs(config: ContinuousBatchingConfig | None) -> ContinuousBatchingConfig:
    """A copy that runs the step eagerly."""
    eager = ContinuousBatchingConfig() if config is None else copy.deepcopy(config)
    asked = any(eager.cuda_graph_booleans) or eager.varlen_compile_config or eager.decode_compile_config
    if asked or eager.default_compile_level:
        logger.warning(
            "CUDA graphs and torch.compile of continuous batching are off: budgetctl is installed."
        )
    eager.use_cuda_graph = False
    eager.varlen_compile_config = eager.decode_compile_config = None
    eager.default_compile_level = 0
    return eager


def _rows_of(knobs: Mapping[str, object], rows: int) -> list[dict[str, Any]]:
    """The knobs of each request, without those that are unset; a sequence has one value a request."""
    columns = {name: as_list(value) for name, value in knobs.items()}
    for name, values in columns.items():
        if len(values) not in (1, rows):
            raise BudgetError(
                f"{name} has {len(values)} values for {rows} prompts: expected one for all or one a prompt"
            )
    return [
        {
            name: value
            for name, values in columns.items()
            if (value := values[row if len(values) > 1 else 0]) is not None
        }
        for row in range(rows)
    ]
