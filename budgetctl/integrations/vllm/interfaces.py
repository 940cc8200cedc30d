"""The class that vLLM loads: :class:`BudgetProcessor` with the base classes of both model runners."""

from __future__ import annotations

from types import new_class
from typing import Any

from budgetctl.integrations.vllm.processor import BudgetProcessor


def processor_class() -> type[BudgetProcessor]:
    """A subclass of each interface of logits processors that this vLLM has: releases before 0.32 have one.

    Raises:
        ImportError: when vLLM is not installed.
    """
    from vllm.v1.sample.logits_processor import LogitsProcessor

    bases: list[type[Any]] = [BudgetProcessor, LogitsProcessor]
    try:
        from vllm.v1.worker.gpu.sample import logits_processor as second
    except ImportError:
        pass
    else:
        bases.append(second.LogitsProcessor)
    found = new_class("BudgetLogitsProcessor", tuple(bases))
    found.__module__ = __name__.rpartition(".")[0]
    found.__doc__ = BudgetProcessor.__doc__
    return found
