"""``reasoning_effort`` of a plain OpenAI client as budgetctl's effort, inside vLLM: a general plugin that is off by default.

vLLM gives the field to the chat template, and it is lost before sampling. With ``BUDGETCTL_MAP_REASONING_EFFORT=1`` in
the server's environment it becomes the ``effort`` of the request as well, level by level, as ``budgetctl serve`` has it;
a request with a knob of budgetctl's own in its ``vllm_xargs`` keeps that.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from budgetctl.errors import BudgetctlError

#: 1 for on; 0, empty or unset for off.
VARIABLE = "BUDGETCTL_MAP_REASONING_EFFORT"


def register() -> None:
    """Entry point of ``vllm.general_plugins``, called in each process of vLLM, and perhaps more than once.

    Raises:
        BudgetctlError: for another value of the variable than 0 and 1.
    """
    given = os.environ.get(VARIABLE) or "0"
    if given not in ("0", "1"):
        raise BudgetctlError(f"{VARIABLE}={given!r}: expected 1 for on or 0 for off; set one of them")
    if given == "0":
        return
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    teach(ChatCompletionRequest, lambda request: request.reasoning_effort)
    teach(ResponsesRequest, lambda request: getattr(request.reasoning, "effort", None))


def teach(kind: Any, effort_of: Callable[[Any], str | None]) -> None:
    """Have a class of requests put its effort into the sampling parameters that it makes.

    Args:
        kind: with a method ``to_sampling_params``, which is replaced once.
        effort_of: a request's level, None for none.
    """
    made = kind.to_sampling_params
    if getattr(made, "_maps_effort", False):
        return

    @functools.wraps(made)
    def to_sampling_params(self: Any, *positional: Any, **named: Any) -> Any:
        params = made(self, *positional, **named)
        params.extra_args = with_effort(params.extra_args, effort_of(self))
        return params

    to_sampling_params._maps_effort = True  # type: ignore[attr-defined]
    kind.to_sampling_params = to_sampling_params


def with_effort(extra_args: dict[str, Any] | None, effort: str | None) -> dict[str, Any] | None:
    """``extra_args`` and the ``effort``, unless there is none or one of budgetctl's knobs is among them."""
    from budgetctl.integrations.batching_support import REQUEST_KNOBS

    given = extra_args or {}
    if effort is None or any(given.get(knob) is not None for knob in REQUEST_KNOBS):
        return extra_args
    return {**given, "effort": effort}
