"""The controller's step by ``torch.compile``: a few launches in place of some hundred small operations.

What is compiled are functions of tensors. What a step keeps (predictions, the log of closes) is kept outside of them, and
so is what runs the model or reads a plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.kernels.host_reads import may_look
from budgetctl.on_device import constant
from budgetctl.prefix_reader import Reading, read_rows
from budgetctl.protect import Spans


def covers(device: torch.device) -> bool:
    """Whether all of a step is compiled, and not its guidance alone: where the host may not look. Where it may, it leaves
    out what no row needs and reads on from the step before, which costs less than compiled code that does all."""
    return not may_look(device)


@cache
def compile_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` by ``torch.compile``, once for all controllers."""
    return torch.compile(function)


def read_compiled(
    input_ids: torch.Tensor,
    delimiters: ThinkingDelimiters,
    prompt_length: int | torch.Tensor,
    spans: Spans | None,
) -> Reading:
    """As :func:`~budgetctl.prefix_reader.read_rows`; compiled once for rows of any length."""
    if isinstance(prompt_length, int):  # a number would be compiled in
        prompt_length = constant((prompt_length,), input_ids.device).expand(len(input_ids))
    torch._dynamo.maybe_mark_dynamic(input_ids, 1)
    reading: Reading = compile_once(_read)(input_ids, delimiters, prompt_length, spans)
    return reading


def _read(
    input_ids: torch.Tensor, delimiters: ThinkingDelimiters, prompt_length: torch.Tensor, spans: Spans | None
) -> Reading:
    reading = read_rows(input_ids, delimiters, prompt_length, spans)
    # A view's strides would grow with the rows.
    return replace(reading, total=reading.total.contiguous())


def tail_of(input_ids: torch.Tensor, delimiters: ThinkingDelimiters, spans: Spans | None) -> torch.Tensor:
    """The last tokens of rows [B, T], as many as the rest of a step looks at: of one shape at every step. Rows that are
    shorter come whole."""
    markers = (*delimiters.all_opens, *delimiters.all_ends, delimiters.forced_end_ids)
    most = max(map(len, markers)) + 2 + (0 if spans is None else len(spans.fence_end))
    return input_ids[:, -most:].contiguous()
