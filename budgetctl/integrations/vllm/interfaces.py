"""The classes that vLLM loads: our processors with the base classes of both model runners."""

from __future__ import annotations

from types import new_class
from typing import Any

from budgetctl.integrations.vllm.processor import BudgetProcessor


def processor_class(
    processor: type[BudgetProcessor] = BudgetProcessor, name: str = "BudgetLogitsProcessor"
) -> type[BudgetProcessor]:
    """A subclass of ``processor`` and of each interface of logits processors that this vLLM has: releases before 0.32
    have one.

    Raises:
        ImportError: when vLLM is not installed.
    """
    from vllm.v1.sample.logits_processor import LogitsProcessor

    bases: list[type[Any]] = [processor, LogitsProcessor]
    try:
        from vllm.v1.worker.gpu.sample import logits_processor as second
    except ImportError:
        pass
    else:
        bases.append(second.LogitsProcessor)
    found = new_class(name, tuple(bases))
    found.__module__ = __name__.rpartition(".")[0]
    found.__doc__ = processor.__doc__
    return found
