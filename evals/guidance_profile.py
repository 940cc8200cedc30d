"""Where a step of the controller spends its time: ``python -m budgetctl.evals.guidance_profile``.

Parts of the controller are marked in the trace of ``torch.profiler``; what is printed is the time within each part less
that of the parts inside it, and the tensor operations that it calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Annotated, Any
from unittest.mock import patch

import torch
import typer
from rich.console import Console
from torch.profiler import ProfilerActivity, profile, record_function

from budgetctl import controller, forecast, guided_step
from budgetctl.controller import BudgetController
from budgetctl.evals.guidance_subjects import DELIMITERS, Subject, logits_alone, model_subject
from budgetctl.kernels import gamma_guidance_numpy
from budgetctl.predictors.folded import FoldedFeatures
from budgetctl.prefix_reader import PrefixReader
from budgetctl.reasoner.load import load_reasoner

#: Part -> where its function is looked up.
PARTS: dict[str, tuple[Any, str]] = {
    "whole step": (BudgetController, "__call__"),
    "thinking state from the tokens": (PrefixReader, "read"),
    "budget of each row": (controller, "caps_at_step"),
    "state from the logits": (FoldedFeatures, "__call__"),
    "likeliest tokens": (guided_step, "top_candidates"),
    "row state": (guided_step, "pack_rows"),
    "guidance": (forecast, "gamma_guidance"),
    "head and log P": (gamma_guidance_numpy, "_fit"),
    "push": (gamma_guidance_numpy, "_push"),
    "end of sequence to the close": (controller, "fold_end_of_sequence"),
    "note for the report": (controller, "note_close"),
    "forced close": (controller, "force_tokens"),
}


@contextmanager
def marked_parts() -> Iterator[None]:
    """Marks the parts in the trace while it is entered."""
    with ExitStack() as stack:
        for name, (owner, attribute) in PARTS.items():
            stack.enter_context(patch.object(owner, attribute, _marked(getattr(owner, attribute), name)))
        yield


def _marked(function: Any, name: str) -> Any:
    @wraps(function)
    def marked(*args: Any, **named: Any) -> Any:
        with record_function(name):
            return function(*args, **named)

    return marked


def measure(subject: Subject, batch: int, thinking_tokens: int, steps: int) -> list[tuple[str, float, float]]:
    """``(part, ms a step, operations a step)``, the parts inside another not counted in it; the rest comes last.

    Args:
        subject: what the logits come from.
        batch: rows.
        thinking_tokens: of the thought before the first step.
        steps: that are traced.
    """
    scores, ids = subject.logits(batch), subject.rows(batch, thinking_tokens + steps + 3)
    ours = BudgetController(
        DELIMITERS,
        thinking_budget=2 * (thinking_tokens + steps),
        forecast=subject.forecast,
        boundaries=subject.boundaries,
        prompt_length=3,
        max_new_tokens=4 * (thinking_tokens + steps),
    )
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (subject.device.type == "cuda")
    with torch.inference_mode(), marked_parts():
        for i in range(3):
            ours(ids[:, : 3 + thinking_tokens + i], scores)
        with profile(activities=activities) as trace:
            for i in range(3, 3 + steps):
                ours(ids[:, : 3 + thinking_tokens + i], scores)
    times, counts = dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 0)
    for event in trace.events():
        inside = event
        while inside is not None and inside.name not in PARTS:
            inside = inside.cpu_parent
        if inside is None:
            continue
        if event.name in PARTS:
            times[event.name] += event.cpu_time_total
            outer = event.cpu_parent
            while outer is not None and outer.name not in PARTS:
                outer = outer.cpu_parent
            if outer is not None:
                times[outer.name] -= event.cpu_time_total
        elif event.cpu_parent is inside:
            counts[inside.name] += 1
    found = [
        (name, times[name] / 1e3 / steps, counts[name] / steps) for name in PARTS if name != "whole step"
    ]
    return [*found, ("all else", times["whole step"] / 1e3 / steps, counts["whole step"] / steps)]


def main(
    batch: Annotated[int, typer.Option(help="rows")] = 1,
    thinking_tokens: Annotated[int, typer.Option(help="of the thought so far")] = 512,
    steps: Annotated[int, typer.Option(help="that are traced")] = 50,
    vocab: Annotated[
        int | None, typer.Option(help="of logits without a model; the embedded reasoner when left out")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads")] = 1,
) -> None:
    """Print the table."""
    torch.set_num_threads(threads)
    place = torch.device(device)
    subject = (
        model_subject(load_reasoner(place)[0], "embedded reasoner")
        if vocab is None
        else logits_alone(vocab, place)
    )
    rows = measure(subject, batch, thinking_tokens, steps)
    total = sum(ms for _, ms, _ in rows)
    lines = ["| part | ms a step (traced) | share | PyTorch operations |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {ms:.3f} | {ms / total:.0%} | {count:.0f} |"
        for name, ms, count in sorted(rows, key=lambda row: -row[1])
    ]
    lines.append(f"| together | {total:.3f} | 100% | {sum(count for *_, count in rows):.0f} |")
    Console().print("\n".join(lines), markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
