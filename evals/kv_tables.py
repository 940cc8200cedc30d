"""What a KV budget costs the embedded reasoner, by policy and capacity: ``python -m budgetctl.evals.kv_tables accuracy``.

Numbers of a small model and its short thoughts: they compare policies on a task where each forgotten token can cost the
answer, and say nothing of long thoughts of large models.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from budgetctl.kernels.kv_state import Protection
from budgetctl.kv import POLICIES, BudgetCache
from budgetctl.kv.policies import find_policy
from budgetctl.reasoner.load import load_reasoner
from budgetctl.reasoner.tasks import Question, take_questions

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
#: Rows of a batch.
BATCH = 32


@dataclass(frozen=True)
class Outcome:
    """Of one policy and capacity: questions, right answers, closed thoughts, tokens written, most columns of a row."""

    questions: int
    right: int
    closed: int
    tokens: int
    columns: int

    @property
    def accuracy(self) -> float:
        return self.right / self.questions

    @property
    def error(self) -> float:
        """Standard error of the accuracy."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.questions)


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[Question],
    cache_options: dict[str, Any] | None = None,
    *,
    max_new_tokens: int = 300,
) -> Outcome:
    """Greedy answers of the model in left-padded batches; with a full cache and SDPA without ``cache_options``."""
    right = closed = tokens = columns = 0
    tokenizer.padding_side = "left"
    model.set_attn_implementation("sdpa" if cache_options is None else "budget_kv")
    for start in range(0, len(questions), BATCH):
        part = questions[start : start + BATCH]
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": question.prompt}], add_generation_prompt=True, tokenize=False
            )
            for question in part
        ]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        cache = DynamicCache() if cache_options is None else BudgetCache(model.config, **cache_options)
        found = model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, past_key_values=cache
        )
        columns = max(columns, cache.get_seq_length())
        for question, row in zip(part, found[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            written = row[: row.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in row else row
            tokens += len(written)
            _, mark, answer = tokenizer.decode(written).partition("</think>")
            closed += bool(mark)
            right += bool(mark) and question.is_correct(answer)
    return Outcome(len(questions), right, closed, tokens, columns)


@app.command()
def accuracy(
    capacities: Annotated[str, typer.Option(help="slots a head, by commas")] = "96,64,56,48",
    policies: Annotated[str, typer.Option(help="names, by commas")] = ",".join(POLICIES),
    questions: Annotated[int, typer.Option(min=1, help="of the test split, seven operations and more")] = 256,
    interval: Annotated[
        int, typer.Option(min=0, help="tokens between choices of victims; 0: each policy's own")
    ] = 4,
    recent: Annotated[int, typer.Option(min=1, help="latest tokens that stay")] = 8,
    prompt_share: Annotated[
        float, typer.Option(help="longest protected prompt, as a share of the slots")
    ] = Protection.prompt_share,
) -> None:
    """Right answers and tokens of greedy decoding with a full cache, and by policy and capacity."""
    model, tokenizer = load_reasoner()
    asked = take_questions("test", questions, min_level=7)
    full = ask(model, tokenizer, asked)
    lines = [
        "| slots | policy | right answers | closed thoughts | tokens an answer |",
        "|---" * 5 + "|",
        _line("all", "full cache, SDPA", full),
    ]
    for capacity in map(int, capacities.split(",")):
        for name in policies.split(","):
            policy = find_policy(name)
            if interval:
                own = {"queries": interval} if policy.window is not None else {}
                policy = type(policy)(interval=interval, **own)
            options = {
                "capacity": capacity,
                "policy": policy,
                "recent": recent,
                "prompt_share": prompt_share,
            }
            lines.append(_line(str(capacity), name, ask(model, tokenizer, asked, options)))
    _show(lines)


@app.command()
def steps(
    lengths: Annotated[str, typer.Option(help="tokens before, by commas")] = "128,512,2048",
    batches: Annotated[str, typer.Option(help="rows, by commas")] = "1,8",
    count: Annotated[int, typer.Option(min=2, help="decode steps of each")] = 40,
) -> None:
    """Milliseconds of a decode step of the reasoner's shape on this CPU: a full cache, and full slots of equal number.

    The two take turns, a step each.
    """
    model, _ = load_reasoner()
    lines = ["| rows | tokens | DynamicCache, SDPA | decayed-max | ratio |", "|---" * 5 + "|"]
    for rows in map(int, batches.split(",")):
        for length in map(int, lengths.split(",")):
            ids = torch.randint(5, 300, (rows, length), generator=torch.Generator().manual_seed(0))
            caches = {"sdpa": DynamicCache(), "budget_kv": BudgetCache(model.config, length)}
            taken: dict[str, list[float]] = {name: [] for name in caches}
            with torch.inference_mode():
                for step in range(count + 1):
                    for name, cache in caches.items():
                        model.set_attn_implementation(name)
                        start = time.perf_counter()
                        model(ids[:, :1] if step else ids, past_key_values=cache)
                        taken[name].append(1e3 * (time.perf_counter() - start))
            full, ours = (sorted(times[1:])[count // 2] for times in taken.values())
            lines.append(f"| {rows} | {length:,} | {full:.2f} | {ours:.2f} | {ours / full:.2f}x |")
    _show(lines)


def _line(capacity: str, name: str, found: Outcome) -> str:
    share = f"{found.accuracy:.3f} ± {found.error:.3f}"
    closed, tokens = found.closed / found.questions, found.tokens / found.questions
    return f"| {capacity} | {name} | {share} | {closed:.3f} | {tokens:.1f} |"


def _show(lines: list[str]) -> None:
    Console().print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
