"""budgetctl inside vLLM against vLLM alone and against its own budget: ``python -m budgetctl.evals.vllm_bench``.

Throughput: two engines of one model in one process, one with the processor and one without, take turns; each writes the
same number of tokens a row, and the ratio of each turn is kept. On a machine that others use, ``--clock cpu`` counts the
processor time of this process. Quality, on the embedded reasoner: the same questions,
seeds and budgets, ours against ``thinking_token_budget``. Writes ``table.md`` and ``results.json`` to ``--out``.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from budgetctl.delimiters import ThinkingDelimiters, find_delimiters
from budgetctl.evals.metrics import bootstrap_mean, paired_difference
from budgetctl.evals.output import write_text
from budgetctl.evals.runner import chat_prompts
from budgetctl.evals.vllm_engines import Stopwatch, processor_of, random_predictor, start_engine, write_all
from budgetctl.integrations.vllm.served_model import (
    CLOSE_VARIABLE,
    OPEN_VARIABLE,
    PREDICTOR_VARIABLE,
    output_embedding,
)
from budgetctl.reasoner.load import PREDICTOR, WEIGHTS, load_reasoner
from budgetctl.reasoner.tasks import take_questions
from budgetctl.segments import split_sequence

#: What is asked of an engine, by arm; the first is what the others are compared with. A number of tokens that no row
#: reaches stands for a budget, so that every step is one inside a limited thought.
ARMS: dict[str, tuple[bool, dict[str, Any]]] = {
    "vLLM alone": (False, {}),
    "processor, no limit": (True, {}),
    "thinking_budget": (True, {"extra_args": {"thinking_budget": 10_000, "answer_reserve": 0}}),
    "effort": (True, {"extra_args": {"effort": "high", "answer_reserve": 0}}),
    "thinking_token_budget": (False, {"thinking_token_budget": 10_000}),
}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
#: Share of its probability that the model itself gives to a close that counts as natural.
WANTED = 0.5


@dataclass(frozen=True)
class Turn:
    """One turn of one arm: tokens per second, and the share of the time that was spent inside the processor."""

    rate: float
    inside: float


def throughput(
    engines: dict[bool, Any],
    prompts: Sequence[Sequence[int]],
    batch: int,
    tokens: int,
    repeats: int,
    clock: str,
    temperature: float = 0.0,
) -> dict[str, list[Turn]]:
    """Turns of each arm by one of :data:`CLOCKS`; one turn before is not counted."""
    from vllm import SamplingParams

    now = CLOCKS[clock]
    watch = Stopwatch(processor_of(engines[True]), ("apply", "update_state"), now)
    turns: dict[str, list[Turn]] = {name: [] for name in ARMS}
    chosen = [prompts[at % len(prompts)] for at in range(batch)]
    for turn in range(repeats + 1):
        for name, (processor, asked) in ARMS.items():
            params = SamplingParams(
                max_tokens=tokens, temperature=temperature, ignore_eos=True, detokenize=False, **asked
            )
            begun, spent = now(), watch.spent
            found = write_all(engines[processor], chosen, [params] * batch)
            taken = now() - begun
            if turn:
                turns[name].append(Turn(sum(map(len, found)) / taken, (watch.spent - spent) / taken))
    return turns


def throughput_table(measured: dict[int, dict[str, list[Turn]]]) -> str:
    """Markdown: tokens per second of vLLM alone; of each arm the median ratio to it in the same turn, the lowest and
    highest, and in brackets what is left of the time without what is spent in the processor, and the microseconds that this
    is for each token of a row, the work of all rows together."""
    others = [name for name in ARMS if name != "vLLM alone"]
    lines = [
        "| batch | vLLM alone, tokens/s | " + " | ".join(others) + " |",
        "|---" * (len(others) + 2) + "|",
    ]
    for batch, turns in measured.items():
        alone = np.array([turn.rate for turn in turns["vLLM alone"]])
        cells = []
        for name in others:
            ratio = np.array([turn.rate for turn in turns[name]]) / alone
            cell = f"{np.median(ratio):.3f} ({ratio.min():.3f} to {ratio.max():.3f})"
            if ARMS[name][0]:
                # A token of each row is a step.
                spent = np.median([turn.inside / turn.rate for turn in turns[name]]) * batch * 1e6
                cell += f" [{1 - np.median([turn.inside for turn in turns[name]]):.3f}, {spent:.0f} us]"
            cells.append(cell)
        lines.append(f"| {batch} | {np.median(alone):.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def closed_by_itself(
    model: Any, prompt: Sequence[int], new_ids: Sequence[int], delimiters: ThinkingDelimiters
) -> bool:
    """Whether the model alone gives the close, where it stands, at least half of its probability."""
    parts = split_sequence([*prompt, *new_ids], len(prompt), delimiters)
    if parts.close_span is None:
        return False
    at = parts.close_span[0]
    ids = torch.tensor([[*prompt, *new_ids]])
    with torch.no_grad():
        probability = model(ids[:, :at]).logits[0, -1].softmax(0)[ids[0, at]]
    return bool(probability >= WANTED)


def quality(engines: dict[bool, Any], count: int, budgets: Sequence[int]) -> list[dict[str, Any]]:
    """One row a budget and method, at temperature 1 with one seed a question."""
    from vllm import SamplingParams

    model, tokenizer = load_reasoner()
    delimiters = find_delimiters(tokenizer)
    questions = take_questions("test", count)
    prompts = [
        tokenizer(text, add_special_tokens=False).input_ids for text in chat_prompts(tokenizer, questions)
    ]
    rows: list[dict[str, Any]] = []

    def answered(method: str, budget: int | None) -> list[dict[str, float]]:
        asked: dict[str, Any] = {}
        if method == "budgetctl":
            asked = {"extra_args": {"thinking_budget": budget}}
        elif budget is not None:  # vLLM counts the template's line break after the marker as thought
            asked = {"thinking_token_budget": budget + len(delimiters.lead_ids)}
        params = [
            SamplingParams(max_tokens=512, temperature=1.0, seed=at, detokenize=False, **asked)
            for at in range(count)
        ]
        found = write_all(engines[method == "budgetctl"], prompts, params)
        records = []
        for question, prompt, ids in zip(questions, prompts, found, strict=True):
            parts = split_sequence([*prompt, *ids], len(prompt), delimiters)
            records.append(
                {
                    "correct": float(question.is_correct(tokenizer.decode(parts.answer))),
                    "natural": float(closed_by_itself(model, prompt, ids, delimiters)),
                    "thinking_tokens": float(len(parts.thought)),
                    "over": float(budget is not None and len(parts.thought) > budget),
                }
            )
        return records

    rows.append({"budget": None, "method": "no limit", **means(answered("no limit", None))})
    for budget in budgets:
        theirs, ours = answered("thinking_token_budget", budget), answered("budgetctl", budget)
        gain = paired_difference([r["correct"] for r in ours], [r["correct"] for r in theirs])
        rows.append({"budget": budget, "method": "thinking_token_budget", **means(theirs)})
        rows.append({"budget": budget, "method": "budgetctl", **means(ours), "gain": str(gain)})
    return rows


def means(records: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The mean of each field; accuracy with its interval."""
    found: dict[str, Any] = {name: float(np.mean([r[name] for r in records])) for name in records[0]}
    return found | {"correct": str(bootstrap_mean([r["correct"] for r in records])), "n": len(records)}


def quality_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown of :func:`quality`."""
    lines = [
        "| budget | method | accuracy [95 %] | natural closes | thinking tokens | over budget | gain [95 %] |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        budget = "none" if row["budget"] is None else row["budget"]
        lines.append(
            f"| {budget} | {row['method']} | {row['correct']} | {row['natural']:.2f} | {row['thinking_tokens']:.1f} | "
            f"{row['over']:.2f} | {row.get('gain', '')} |"
        )
    return "\n".join(lines)


def prompts_for(model: str | None) -> list[list[int]]:
    """Questions of the embedded reasoner; of another model, a request with an opened thought, at
    whose first token its length is predicted."""
    if model is None:
        _, tokenizer = load_reasoner()
        texts = chat_prompts(tokenizer, take_questions("test", 64, min_level=7))
        return [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    asked = [{"role": "user", "content": "Name three colours that a ripe apple can have, and say why."}]
    text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False) + "<think>"
    return [tokenizer(text, add_special_tokens=False).input_ids]


def main(
    model: Annotated[str | None, typer.Option(help="directory; the embedded reasoner when left out")] = None,
    predictor: Annotated[
        str | None, typer.Option(help="its predictor; one of random weights when left out")
    ] = None,
    batches: Annotated[str, typer.Option(help="batch sizes")] = "1,16,64",
    tokens: Annotated[int, typer.Option(help="new tokens a row")] = 64,
    repeats: Annotated[int, typer.Option(help="turns of each arm")] = 5,
    temperature: Annotated[float, typer.Option(help="of the throughput's rows")] = 0.0,
    clock: Annotated[str, typer.Option(help="wall, or cpu for the processor time of this process")] = "wall",
    count: Annotated[int, typer.Option("--n", help="questions; 0 leaves quality out")] = 256,
    budgets: Annotated[
        str, typer.Option(help="thinking budgets of the quality table, in tokens")
    ] = "8,16,32",
    out: Annotated[Path, typer.Option(help="folder for table and results")] = Path("runs/vllm_bench"),
) -> None:
    """Measure throughput, and quality on the embedded reasoner."""
    if clock not in CLOCKS:
        raise typer.BadParameter(f"--clock {clock}: expected wall or cpu")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    out.mkdir(parents=True, exist_ok=True)
    if model is None:
        predictor = predictor or str(PREDICTOR)
    elif predictor is None:
        predictor = str(_random_predictor(model, out))
    os.environ[PREDICTOR_VARIABLE] = predictor
    chosen = str(WEIGHTS) if model is None else model
    engines = {processor: start_engine(chosen, processor=processor) for processor in (True, False)}
    loads = [os.getloadavg()[0]]
    prompts = prompts_for(model)
    measured = {
        int(batch): throughput(engines, prompts, int(batch), tokens, repeats, clock, temperature)
        for batch in batches.split(",")
    }
    loads.append(os.getloadavg()[0])
    text = (
        f"{chosen if model else 'embedded reasoner'}, float32, {torch.get_num_threads()} threads, {tokens} tokens a row, "
        f"temperature {temperature:g}, "
        f"{repeats} turns, {clock} clock; load of the machine {loads[0]:.1f} before and {loads[1]:.1f} after\n\n"
    )
    text += throughput_table(measured) + "\n"
    rows: list[dict[str, Any]] = []
    if model is None and count:
        rows = quality(engines, count, [int(budget) for budget in budgets.split(",")])
        text += f"\n{count} questions, temperature 1\n\n" + quality_table(rows) + "\n"
    plain = {
        batch: {name: [asdict(turn) for turn in turns] for name, turns in arms.items()}
        for batch, arms in measured.items()
    }
    write_text(out / "table.md", text)
    write_text(out / "results.json", json.dumps({"turns": plain, "quality": rows, "load": loads}))
    Console().print(text, markup=False, soft_wrap=True)


def _random_predictor(model: str, out: Path) -> Path:
    from transformers import AutoConfig, AutoTokenizer

    os.environ.setdefault(OPEN_VARIABLE, "<think>")
    os.environ.setdefault(CLOSE_VARIABLE, "</think>")
    delimiters = find_delimiters(
        AutoTokenizer.from_pretrained(model),
        open_text=os.environ[OPEN_VARIABLE],
        close_text=os.environ[CLOSE_VARIABLE],
    )
    weight = output_embedding(Path(model), AutoConfig.from_pretrained(model).get_text_config()).float()
    return random_predictor(weight, delimiters, out / "predictor")


if __name__ == "__main__":
    typer.run(main)
