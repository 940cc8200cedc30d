"""Supervised data for budget prompts from a model's own thoughts: ``python -m budgetctl.training.mode_data --help``.

    python -m budgetctl.training.mode_data --kind modes --count 500 --out runs/modes.jsonl

samples thoughts on task questions (``<out>.traces.jsonl``), makes the rows of a kind from those with right answers, and
writes them as JSON lines for ``budgetctl.training.sft``. Kinds: ``modes`` (ThinkDial), ``l1-exact``, ``l1-max``,
``effort`` (e1), ``hbpo``. Interrupted, it goes on when it is run again; the file appears when it is whole.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from datasets import Dataset
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from budgetctl.closing import Boundaries
from budgetctl.delimiters import ThinkingDelimiters, find_delimiters
from budgetctl.errors import BudgetctlError, TrainingError
from budgetctl.predictors.traces import collect_traces, load_traces
from budgetctl.reasoner.load import MODEL_ID, load_reasoner
from budgetctl.training.hindsight import builder
from budgetctl.training.row_file import build_row_file
from budgetctl.training.tasks import load_tasks
from budgetctl.training.thinkdial import Thought, mode_rows
from budgetctl.training.verifiers import is_correct


def judge(answer: str, row: Mapping[str, Any]) -> bool:
    """Whether an answer's text is right for a task row."""
    return is_correct(answer, row["answer"], row["task"], row["entry"])


def render(tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> list[str]:
    """Each row's prompt through the chat template, ready for the thought."""
    return [
        tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        for row in rows
    ]


def read_thoughts(path: Path, tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> list[Thought]:
    """The closed thoughts of a file of traces that was collected on the prompts of ``rows``."""
    lengths = [len(ids) for ids in tokenizer(render(tokenizer, rows), add_special_tokens=False).input_ids]
    found = []
    for trace in load_traces(path):
        if trace.closed:
            opening = trace.prompt_ids[lengths[trace.prompt_index] :]
            found.append(
                Thought(
                    rows[trace.prompt_index],
                    trace.prompt_ids,
                    opening,
                    trace.thought_ids,
                    trace.close_ids,
                    trace.answer_ids,
                )
            )
    return found


def answerer(
    model: PreTrainedModel, delimiters: ThinkingDelimiters, pad_id: int, max_new_tokens: int, batch_size: int
) -> Callable[[Sequence[Sequence[int]]], list[list[int]]]:
    """Greedy continuation of rows of ids, each up to its end of sequence, which is left out."""

    @torch.inference_mode()
    def answer(rows: Sequence[Sequence[int]]) -> list[list[int]]:
        found: list[list[int]] = []
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            width = max(map(len, batch))
            ids = torch.tensor([[pad_id] * (width - len(r)) + list(r) for r in batch], device=model.device)
            mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in batch], device=model.device)
            sequences = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                max_new_tokens=max_new_tokens,
                pad_token_id=pad_id,
            )
            for new in sequences[:, width:].tolist():
                ends = [at for at, token in enumerate(new) if token in delimiters.eos_ids]
                found.append(new[: ends[0]] if ends else new)
        return found

    return answer


def build(
    out: Path,
    kind: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    *,
    model_id: str,
    samples: int = 4,
    temperature: float = 1.0,
    max_new_tokens: int = 512,
    answer_tokens: int = 128,
    batch_size: int = 32,
    budgets: Sequence[int] = (),
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> int:
    """Sample thoughts and write the rows of a kind; returns their number.

    Args:
        out: JSON-lines file.
        kind: as in the module's docstring.
        model: whose thoughts are taken, and which answers from truncated ones.
        tokenizer: its tokenizer.
        rows: task dataset of ``training/tasks.py``.
        model_id: written into the settings.
        samples: thoughts a question.
        temperature: of the thoughts; answers from truncated ones are greedy.
        max_new_tokens: of thought and answer.
        answer_tokens: of an answer from a truncated thought.
        batch_size: rows generated at once.
        budgets: of the kind ``hbpo``.
        seed: of all draws.
        progress: called with what is done, how many of how many.

    Raises:
        BudgetctlError: an unknown kind, no markers of a thought, or a file of other settings.
    """
    maker = None if kind == "modes" else builder(kind, budgets, seed)
    delimiters = find_delimiters(tokenizer)
    traces = out.with_name(out.name + ".traces.jsonl")
    total, done = len(rows) * samples, 0

    def sampled(more: int) -> None:
        nonlocal done
        done += more
        progress("thoughts", done, total)

    collect_traces(
        model,
        tokenizer,
        delimiters,
        render(tokenizer, rows),
        traces,
        samples_per_prompt=samples,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        temperature=temperature,
        seed=seed,
        model_id=model_id,
        progress=sampled,
    )
    thoughts = read_thoughts(traces, tokenizer, rows)
    # Modes need the model and are made by batches; e1 compares all thoughts of a question, which takes no time.
    size = batch_size if maker is None else max(len(thoughts), 1)
    parts = [thoughts[at : at + size] for at in range(0, len(thoughts), size)]
    lines = Boundaries.from_tokenizer(tokenizer, len(tokenizer)).line
    ends = set(lines.nonzero()[:, 0].tolist())
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (*delimiters.eos_ids, 0)[0]
    answer = answerer(model, delimiters, pad, answer_tokens, batch_size)
    made = 0

    def make(part: Sequence[Thought]) -> list[dict[str, Any]]:
        nonlocal made
        found = (
            maker(part, tokenizer, judge)
            if maker is not None
            else mode_rows(part, tokenizer, answer, judge, line_ends=ends)
        )
        made += 1
        progress("parts", made, len(parts))
        return found

    settings = {
        "kind": kind,
        "model_id": model_id,
        "questions_sha256": hashlib.sha256("".join(rows["question_id"]).encode()).hexdigest(),
        "samples": samples,
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "answer_tokens": answer_tokens,
        "batch_size": batch_size,
        "budgets": list(budgets),
        "seed": seed,
    }
    return build_row_file(out, settings, parts, make)


def main(
    out: Annotated[Path, typer.Option(help="JSON-lines file to write")],
    kind: Annotated[str, typer.Option(help="modes, l1-exact, l1-max, effort or hbpo")] = "modes",
    model: Annotated[
        str | None, typer.Option(help="directory or hub id; the embedded reasoner if left out")
    ] = None,
    tasks: Annotated[
        str, typer.Option(help="embedded, reasoning-gym:NAME,NAME, a file or a hub id")
    ] = "embedded",
    count: Annotated[int, typer.Option(help="questions")] = 500,
    samples: Annotated[int, typer.Option(help="thoughts a question")] = 4,
    temperature: Annotated[float, typer.Option(help="of the thoughts")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="limit of thought and answer")] = 512,
    answer_tokens: Annotated[int, typer.Option(help="limit of an answer from a truncated thought")] = 128,
    batch_size: Annotated[int, typer.Option(help="rows generated at once")] = 32,
    budgets: Annotated[str, typer.Option(help="of kind hbpo, in tokens: 64,128")] = "",
    seed: Annotated[int, typer.Option(help="of questions and draws")] = 0,
    device: Annotated[str | None, typer.Option(help="torch device; CUDA where there is one")] = None,
) -> None:
    """Make supervised data for budget prompts."""
    console = Console(stderr=True)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = [int(budget) for budget in budgets.split(",") if budget.strip()]
        if kind != "modes":
            builder(kind, chosen, seed)  # refused before a model is loaded
        rows = load_tasks(tasks, count, seed=seed)
        if model is None:
            loaded, tokenizer = load_reasoner(device)
        else:
            tokenizer = AutoTokenizer.from_pretrained(model)
            find_delimiters(tokenizer)
            loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto").to(device).eval()
        with console.status("sampling") as status:
            written = build(
                out,
                kind,
                loaded,
                tokenizer,
                rows,
                model_id=model or MODEL_ID,
                samples=samples,
                temperature=temperature,
                max_new_tokens=max_new_tokens,
                answer_tokens=answer_tokens,
                batch_size=batch_size,
                budgets=chosen,
                seed=seed,
                progress=lambda what, done, total: status.update(f"{what}: {done} of {total}"),
            )
        if not written:
            raise TrainingError(
                f"no row of {len(rows)} questions: expected some right answers; use an abler model"
            )
    except BudgetctlError as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        sys.exit(2)
    console.print(f"{written} rows in {out}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
