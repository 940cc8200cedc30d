"""vLLM engines in this process, for measurements: with budgetctl's processor and without it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from budgetctl.errors import EvalError
from budgetctl.predictors.artifact import describe_model, save_predictor
from budgetctl.predictors.gamma import GammaLengthPredictor, GammaPredictorConfig

PROCESSOR = "budgetctl.integrations.vllm:BudgetLogitsProcessor"


def start_engine(model: str, *, processor: bool, **options: Any) -> Any:
    """An ``LLM`` in float32 whose own ``thinking_token_budget`` works too.

    Raises:
        EvalError: when vLLM is not installed.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    try:
        from vllm import LLM
    except ImportError as error:
        raise EvalError(
            f"vLLM cannot be imported ({error}): expected the package vllm; run pip install vllm"
        ) from None
    settings = {
        "dtype": "float32",
        "max_model_len": 1024,
        "max_num_seqs": 64,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "disable_log_stats": True,
        "reasoning_config": {"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"},
    }
    return LLM(model=model, logits_processors=[PROCESSOR] if processor else None, **(settings | options))


def processor_of(engine: Any) -> Any:
    """The processor inside an engine that was started with one."""
    worker = engine.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    return worker.model_runner.input_batch.logitsprocs.non_argmax_invariant[-1]


class Stopwatch:
    """Adds up the seconds that an object's methods take.

    Args:
        watched: the object; its methods are replaced.
        names: of the methods.
        clock: in seconds.
    """

    def __init__(self, watched: Any, names: Sequence[str], clock: Callable[[], float]) -> None:
        self.spent = 0.0
        self._clock = clock
        for name in names:
            setattr(watched, name, self._timed(getattr(watched, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*positional: Any, **named: Any) -> Any:
            begun = self._clock()
            try:
                return method(*positional, **named)
            finally:
                self.spent += self._clock() - begun

        return timed


def write_all(engine: Any, prompts: Sequence[Sequence[int]], params: Sequence[Any]) -> list[list[int]]:
    """New ids for each prompt of token ids."""
    given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    return [list(o.outputs[0].token_ids) for o in engine.generate(given, list(params), use_tqdm=False)]


def random_predictor(output_embedding: torch.Tensor, delimiters: Any, directory: Path) -> Path:
    """A predictor of the default sizes with random weights, for a model that none was fitted for: it costs what a fitted
    one does."""
    torch.manual_seed(0)
    size = output_embedding.shape[1]
    predictor = GammaLengthPredictor(GammaPredictorConfig(size))
    metadata = describe_model(output_embedding, delimiters, "random weights, for timing")
    save_predictor(predictor, directory, metadata)
    return directory
