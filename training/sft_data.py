"""Prompts and completions as token ids with the loss on the completion alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from budgetctl.errors import TrainingError

IGNORE = -100


def tokenize_rows(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None
) -> tuple[Dataset, int]:
    """Supervised examples as ``input_ids`` and ``labels``, which TRL's ``SFTTrainer`` takes as they are.

    TRL renders a conversation twice, with and without the answer, and needs the one to begin with the other; templates
    that write or drop thoughts break that. Here the prompt is rendered as in generation, and the completion follows as
    it is written.

    Args:
        rows: ``prompt`` (messages, or text as the model reads it) and ``completion`` (text with the end of sequence).
        tokenizer: the model's.
        max_length: tokens; longer examples are left out, because a completion that is cut teaches never to end.

    Returns:
        the examples, and how many were left out.

    Raises:
        TrainingError: a column is missing, or nothing is left.
    """
    for name in ("prompt", "completion"):
        if name not in rows.column_names:
            raise TrainingError(
                f"supervised data with the columns {', '.join(rows.column_names)}: expected prompt and completion; make it "
                "with budgetctl.training.mode_data"
            )
    examples = [_example(row, tokenizer) for row in rows]
    kept = [e for e in examples if max_length is None or len(e["input_ids"]) <= max_length]
    if not kept:
        raise TrainingError(
            f"{len(examples)} supervised examples, none of at most max_length={max_length} tokens: expected some; raise "
            "max_length"
        )
    return Dataset.from_list(kept), len(examples) - len(kept)


def _example(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    before = tokenizer.encode(prompt_text(row["prompt"], tokenizer), add_special_tokens=False)
    after = tokenizer.encode(row["completion"], add_special_tokens=False)
    return {"input_ids": [*before, *after], "labels": [IGNORE] * len(before) + after}


def joined(parts: Sequence[Dataset], tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Datasets one after the other, such as mode data and the plain data beside it, with the columns common to all.

    Prompts become texts, since some may be messages and others not.
    """
    if len(parts) == 1:
        return parts[0]
    common = [name for name in parts[0].column_names if all(name in part.column_names for part in parts)]
    rows = [{name: row[name] for name in common} for part in parts for row in part]
    return Dataset.from_list(
        [row | {"prompt": prompt_text(row["prompt"], tokenizer)} if "prompt" in row else row for row in rows]
    )


def prompt_text(prompt: Any, tokenizer: PreTrainedTokenizerBase) -> str:
    """Messages through the chat template, ready for the thought; a text as it is."""
    if isinstance(prompt, str):
        return prompt
    return str(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False))


def balanced(rows: Dataset, column: str) -> Dataset:
    """As many rows of each value of a column as of the rarest one, the first of each.

    Raises:
        TrainingError: the column is missing.
    """
    if column not in rows.column_names:
        raise TrainingError(
            f"no column {column!r} to balance by among {', '.join(rows.column_names)}: expected one of them; correct it"
        )
    values = list(rows[column])
    least = min(Counter(values).values())
    seen: Counter[Any] = Counter()
    chosen = []
    for place, value in enumerate(values):
        seen[value] += 1
        if seen[value] <= least:
            chosen.append(place)
    return rows.select(chosen)
