"""Opens a vLLM engine for evaluations; what can be refused is refused before vLLM is imported."""

from __future__ import annotations

import importlib.util
import json
import os
from typing import Any

import torch

from budgetctl.delimiters import find_delimiters
from budgetctl.errors import EvalError
from budgetctl.evals.harness.vllm_engine import VLLMEngine
from budgetctl.integrations.vllm.served_model import (
    CLOSE_VARIABLE,
    OPEN_VARIABLE,
    PREDICTOR_VARIABLE,
    read_served_model,
)
from budgetctl.reasoner.load import PREDICTOR, WEIGHTS

PROCESSOR = "budgetctl.integrations.vllm:BudgetLogitsProcessor"
#: Options of an ``LLM`` that evaluations set themselves.
OWN = ("model", "logits_processors", "max_logprobs", "reasoning_config")


def check_vllm(options: str | None, device: str | None, processes: int) -> dict[str, Any]:
    """The options of an ``LLM``, from a JSON object.

    Args:
        options: its text; None for none.
        device: that was asked for; must be None.
        processes: of the run; must be 1.

    Raises:
        EvalError: for options that are no object or are set here, a device, several processes, or no vLLM.
    """
    try:
        found = {} if options is None else json.loads(options)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise EvalError(
            f"--engine-options {options!r}: expected a JSON object of vLLM's options, such as "
            "'{\"tensor_parallel_size\": 2}'; correct it"
        )
    for name in OWN:
        if name in found:
            raise EvalError(f"--engine-options with {name}: expected none, as evaluations set it; drop it")
    if device is not None:
        raise EvalError(
            f"--device {device} with --engine vllm: expected none, since an installation of vLLM is for one kind of device; "
            "drop it, and choose among GPUs by CUDA_VISIBLE_DEVICES"
        )
    if processes > 1:
        raise EvalError(
            f"--engine vllm in {processes} processes: expected one, which has several GPUs by --engine-options; start it "
            "without a launcher"
        )
    if importlib.util.find_spec("vllm") is None:
        raise EvalError(
            "vLLM is not installed here: expected the package vllm beside budgetctl; run pip install vllm, or use "
            "--engine transformers"
        )
    return found


def open_vllm(
    model: str | None, predictor: str | None, options: dict[str, Any], *, temperature: float = 1.0
) -> VLLMEngine:
    """A vLLM engine with budgetctl's processor.

    Args:
        model: directory or hub id; the embedded reasoner when None.
        predictor: directory or hub id; that of the embedded reasoner when both are None.
        options: of ``vllm.LLM``, beside and above those set here.
        temperature: of sampling.

    Raises:
        DelimiterError: when the tokenizer has no markers of a thought.
        PredictorError: when the predictor is of another model.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    # The processor reads it, wherever it runs.
    os.environ.pop(PREDICTOR_VARIABLE, None)
    if predictor is not None or model is None:
        os.environ[PREDICTOR_VARIABLE] = str(predictor or PREDICTOR)
    from transformers import AutoTokenizer
    from vllm import LLM
    from vllm.platforms import current_platform

    chosen = str(WEIGHTS) if model is None else model
    delimiters = find_delimiters(
        AutoTokenizer.from_pretrained(chosen),
        open_text=os.environ.get(OPEN_VARIABLE) or None,
        close_text=os.environ.get(CLOSE_VARIABLE) or None,
    )
    settings: dict[str, Any] = {"logits_processors": [PROCESSOR], "max_logprobs": -1}
    if not delimiters.implicit:
        settings["reasoning_config"] = {
            "reasoning_start_str": delimiters.open_text.strip(),
            "reasoning_end_str": delimiters.close_text.strip(),
        }
    if model is None:
        # Its vocabulary is too small for hidden states to be recovered from rounded logits.
        settings["dtype"] = "float32"
    if current_platform.is_cpu():
        # With a seed of its own, a request cannot have its prompt in chunks there (vLLM 0.32).
        settings["enable_chunked_prefill"] = False
    llm = LLM(model=chosen, **(settings | options))
    served = read_served_model(llm.llm_engine.vllm_config, torch.device("cpu"))
    return VLLMEngine(llm, served, temperature=temperature)
