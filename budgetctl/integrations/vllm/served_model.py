"""What is known of the model that vLLM serves, before it has loaded it: markers, boundaries, and the length forecast."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from budgetctl.closing import Boundaries
from budgetctl.delimiters import ThinkingDelimiters, find_delimiters
from budgetctl.errors import PredictorError
from budgetctl.forecast import NATURAL_COVERAGE, LengthForecast
from budgetctl.predictors.artifact import check_model, load_predictor
from budgetctl.predictors.calibrate import level_for
from budgetctl.predictors.hidden_state import LogitsHiddenState

#: Names a predictor: a directory or a hub id.
PREDICTOR_VARIABLE = "BUDGETCTL_PREDICTOR"
#: Spell the markers of a model whose tokenizer does not show them.
OPEN_VARIABLE, CLOSE_VARIABLE = "BUDGETCTL_OPEN_TEXT", "BUDGETCTL_CLOSE_TEXT"

#: Largest relative error of hidden states that were recovered from rounded logits, as ``install`` has it.
MAX_RECOVERY_ERROR = 0.05

_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")


@dataclass
class ServedModel:
    """Args:
    delimiters: the markers of the thought.
    boundaries: line and sentence ends by token.
    forecast: the remaining-length forecast, None without a predictor.
    rounding_error: relative error of hidden states recovered from logits that were rounded as the engine rounds them.
    context: most tokens of prompt and generation.
    """

    delimiters: ThinkingDelimiters
    boundaries: Boundaries
    forecast: LengthForecast | None
    rounding_error: float | None
    context: int


def predictor_path() -> str | None:
    """The predictor that the server's environment names."""
    return os.environ.get(PREDICTOR_VARIABLE) or None


def read_served_model(vllm_config: Any, device: torch.device) -> ServedModel:
    """Read tokenizer, configuration and output embedding of the model of a ``VllmConfig``.

    Raises:
        DelimiterError: when the tokenizer has no markers of a thought.
        PredictorError: for a predictor that is corrupt or of another model, a checkpoint without safetensors, or logits
            that are too coarse to recover hidden states from.
    """
    from transformers import AutoTokenizer

    config = vllm_config.model_config
    tokenizer = AutoTokenizer.from_pretrained(
        config.tokenizer, revision=config.tokenizer_revision, trust_remote_code=config.trust_remote_code
    )
    generation = config.try_get_generation_config() or {}
    delimiters = find_delimiters(
        tokenizer,
        open_text=os.environ.get(OPEN_VARIABLE) or None,
        close_text=os.environ.get(CLOSE_VARIABLE) or None,
        eos_token_id=generation.get("eos_token_id"),
    )
    boundaries = Boundaries.from_tokenizer(tokenizer, config.get_vocab_size())
    forecast, error = None, None
    path = predictor_path()
    if path is not None:
        weight = output_embedding(checkpoint(config), config.hf_text_config).to(config.dtype)
        forecast = read_forecast(path, weight, delimiters, config.hf_text_config, device)
        error = rounding_error(forecast.source, weight, config.dtype)
        if error > MAX_RECOVERY_ERROR:
            raise PredictorError(
                f"hidden states recovered from logits in {config.dtype} are off by {error:.1%}: expected at most "
                f"{MAX_RECOVERY_ERROR:.0%}; serve with --dtype float32, or run without a predictor"
            )
    return ServedModel(delimiters, boundaries, forecast, error, config.max_model_len)


def read_forecast(
    path: str,
    weight: torch.Tensor,
    delimiters: ThinkingDelimiters,
    text_config: Any,
    device: torch.device,
) -> LengthForecast:
    """The forecast of the predictor at ``path`` for a model with the output embedding ``weight`` [V, d].

    Raises:
        PredictorError: for a predictor that is corrupt or of another model.
    """
    artifact = load_predictor(path)
    check_model(artifact, weight, delimiters)
    scale = getattr(text_config, "logit_scale", None) or 1.0 / (
        getattr(text_config, "logits_scaling", None) or 1.0
    )
    head = weight.to(device, torch.float32)
    softcap = getattr(text_config, "final_logit_softcapping", None)
    source = LogitsHiddenState(head, scale=scale, softcap=softcap)
    return LengthForecast(
        artifact.predictor,
        source,
        head,
        artifact.guidance_strength,
        natural_level=level_for(artifact.calibration, NATURAL_COVERAGE),
    )


def checkpoint(model_config: Any) -> Path:
    """The directory with the model's safetensors; a hub id is fetched as vLLM does it."""
    if Path(model_config.model).is_dir():
        return Path(model_config.model)
    from huggingface_hub import snapshot_download

    patterns = ["*.safetensors", "*.safetensors.index.json"]
    return Path(
        snapshot_download(model_config.model, revision=model_config.revision, allow_patterns=patterns)
    )


def output_embedding(directory: Path, text_config: Any) -> torch.Tensor:
    """[V, d] as it is stored.

    Raises:
        PredictorError: when there is none in safetensors, or it is quantised.
    """
    files: dict[str, Path] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as opened:
            files |= dict.fromkeys(opened.keys(), path)
    wanted = _EMBEDDINGS if getattr(text_config, "tie_word_embeddings", False) else _HEADS
    found = [name for ending in wanted for name in files if name.endswith(ending)]
    if not found:
        raise PredictorError(
            f"{directory} has no output embedding in safetensors: expected a tensor like {wanted[0]}; "
            "serve a safetensors checkpoint, or run without a predictor"
        )
    with safe_open(files[found[0]], framework="pt") as opened:
        weight: torch.Tensor = opened.get_tensor(found[0])
    if not weight.is_floating_point() or weight.dtype.itemsize < 2:
        raise PredictorError(
            f"{found[0]} is of type {weight.dtype}: expected 16 bits or more; serve a checkpoint whose output "
            "embedding is not quantised, or run without a predictor"
        )
    return weight


@torch.no_grad()
def rounding_error(source: LogitsHiddenState, weight: torch.Tensor, dtype: torch.dtype) -> float:
    """Largest relative error of hidden states recovered from logits in ``dtype``, over 64 random states of the scale
    that a final norm gives (unit variance)."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, weight.shape[1], generator=generator).to(dtype)
    scores = (hidden.float() @ weight.cpu().float().T * source.scale).to(dtype)
    if source.softcap is not None:
        scores = (source.softcap * (scores.float() / source.softcap).tanh()).to(dtype)
    found = source(scores.to(source.map.device)).cpu().float()
    return float(((found - hidden.float()).norm(dim=1) / hidden.float().norm(dim=1)).max())


@torch.no_grad()
def misfit(source: LogitsHiddenState, scores: torch.Tensor) -> torch.Tensor:
    """[B] share of logits [B, V] that no hidden state explains: near 0 where they are a linear map of one."""
    centred, banned = source.centred(source.anchor_logits(scores))
    present = (~banned).to(centred)
    explained = source(scores) @ source._rows.T
    mean = (explained * present).sum(1, keepdim=True) / present.sum(1, keepdim=True).clamp(min=1)
    left = centred - (explained - mean) * present
    return left.norm(dim=1) / centred.norm(dim=1).clamp(min=torch.finfo(centred.dtype).tiny)
