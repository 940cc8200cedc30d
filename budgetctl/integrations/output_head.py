"""The forecast of a model whose engine keeps the weights: its output embedding is read from the checkpoint alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.errors import PredictorError
from budgetctl.forecast import NATURAL_COVERAGE, LengthForecast
from budgetctl.predictors.artifact import check_model, load_predictor
from budgetctl.predictors.calibrate import level_for
from budgetctl.predictors.hidden_state import LogitsHiddenState

#: Names of an output embedding, and of the input embedding where it is tied to that.
_HEADS = ("lm_head.weight", "model.lm_head.weight")
_TIED = ("model.embed_tokens.weight", "embed_tokens.weight", "model.language_model.embed_tokens.weight")


def forecast_of(
    model: Path, config: Any, predictor: str | Path, delimiters: ThinkingDelimiters
) -> LengthForecast:
    """The forecast for a model's directory, in float32 on the CPU.

    Raises:
        PredictorError: for a predictor of another model, or a checkpoint without an output embedding in safetensors.
    """
    weight = read_output_embedding(model)
    artifact = load_predictor(predictor)
    check_model(artifact, weight, delimiters)
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    source = LogitsHiddenState(
        weight, scale=scale, softcap=getattr(config, "final_logit_softcapping", None), dtype=torch.float32
    )
    return LengthForecast(
        artifact.predictor,
        source,
        weight,
        artifact.guidance_strength,
        torch.float32,
        level_for(artifact.calibration, NATURAL_COVERAGE),
    )


def read_output_embedding(model: Path) -> torch.Tensor:
    """[V, d] the output embedding, or the input embedding that is tied to it.

    Raises:
        PredictorError: when the directory has neither in safetensors.
    """
    from safetensors import safe_open

    index = model / "model.safetensors.index.json"
    if index.is_file():
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    elif (model / "model.safetensors").is_file():
        with safe_open(model / "model.safetensors", "pt") as file:
            places = dict.fromkeys(file.keys(), "model.safetensors")
    else:
        places = {}
    for name in (*_HEADS, *_TIED):
        if name in places:
            with safe_open(model / places[name], "pt") as file:
                return file.get_tensor(name)
    raise PredictorError(
        f"no output embedding in {model}: expected {_HEADS[0]} or {_TIED[0]} in safetensors; convert the checkpoint, or "
        "serve without a predictor"
    )
