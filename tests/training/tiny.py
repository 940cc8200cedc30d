"""A one-layer model with the embedded reasoner's tokenizer, on disk, and trainers over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

#: What the recipes of these tests have in common; names are TRL's.
OPTIONS: dict[str, Any] = {
    "questions": 8,
    "max_steps": 2,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 24,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}

#: Of each method its own.
OWN: dict[str, dict[str, Any]] = {
    "grpo": {},
    "hbpo": {"budgets": [8, 16]},
    "elastic": {"thinking_budget": 4, "answer_budget": 8},
    "brpo": {"budgets": [3, 6], "summaries": 1, "answer_budget": 8},
}


def save_tiny_model(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Random weights that often open, close and end: embeddings of the markers point where the state does."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=16,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    close = tokenizer.convert_tokens_to_ids("</think>")
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
        model.lm_head.weight[[close, tokenizer.eos_token_id]] *= 3
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def command_line(options: dict[str, Any]) -> list[str]:
    """``--name value`` for each option."""
    words = []
    for name, value in options.items():
        words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return words


def reward_by_ids(trainer: Any) -> None:
    """Rewards that are a function of each completion and differ within a group, whatever the tiny model writes."""

    def accuracy(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
        return [(sum(ids) % 7) / 7 for ids in completion_ids]

    trainer.reward_funcs = [accuracy] * len(trainer.reward_funcs)
