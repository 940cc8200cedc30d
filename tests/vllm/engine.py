"""A vLLM engine in this process, and what stands inside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

# Before vLLM is imported: the engine in this process, so that its processor can be looked at; a small cache.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

#: How the processor is given to vLLM.
PROCESSOR = "budgetctl.integrations.vllm:BudgetLogitsProcessor"


def start(model: str, *, processors: Sequence[Any] = (PROCESSOR,), **options: Any) -> Any:
    """An ``LLM`` in float32."""
    from vllm import LLM

    settings = {"enforce_eager": True, "max_model_len": 1024, "max_num_seqs": 16, "disable_log_stats": True}
    return LLM(
        model=model, dtype="float32", logits_processors=list(processors) or None, **(settings | options)
    )


def processor_of(engine: Any) -> Any:
    """The processor that the engine has made."""
    worker = engine.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    return worker.model_runner.input_batch.logitsprocs.non_argmax_invariant[-1]


def write(
    engine: Any, prompts: Sequence[Sequence[int]], knobs: Sequence[dict[str, Any] | None], **options: Any
) -> list[list[int]]:
    """New ids of each prompt of token ids; ``knobs`` has one set a prompt. ``n`` samples of a prompt follow each other."""
    from vllm import SamplingParams

    settings = {"temperature": 0.0, "max_tokens": 256} | options
    params = [SamplingParams(**settings, extra_args=asked or None) for asked in knobs]
    given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    outputs = engine.generate(given, params, use_tqdm=False)
    return [list(sample.token_ids) for output in outputs for sample in output.outputs]
