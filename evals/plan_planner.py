"""A model that plans the questions of :mod:`budgetctl.evals.plan`: examples to fine-tune it on, and how well it plans.

``python -m budgetctl.evals.plan_planner examples`` writes questions of the training split with their plans by rule as JSON
lines for ``budgetctl.training.sft --data``. ``... measure --planner DIR`` asks a planner about held-out questions, through
:class:`~budgetctl.plan.planner.Planner`, and compares what it writes with the rule.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from budgetctl.errors import InputFileError
from budgetctl.evals.output import progress_bar, write_jsonl
from budgetctl.plan.plan import WEIGHTED, Plan
from budgetctl.plan.plan_cache import PlanCache
from budgetctl.plan.planner import Planner
from budgetctl.plan.prompts import planning_prompt
from budgetctl.plan.writers import ModelWriter, Writer, Written
from budgetctl.reasoner.load import WEIGHTS
from budgetctl.reasoner.plans import plan_question
from budgetctl.reasoner.tasks import Question, questions

MIN_LEVEL = 4
#: Credits of a plan sum to this, as the planning prompt asks.
CREDITS = 100
#: What a planner that was fine-tuned is asked: it needs no instructions.
SHORT_PROMPT = "{question} Plan it."

app = typer.Typer(help=__doc__, no_args_is_help=True)


def take_pairs(split: str, count: int, seed: int = 0, min_level: int = MIN_LEVEL) -> list[Question]:
    """The first ``count`` distinct questions of two parts with at least ``min_level`` turns."""
    chosen: dict[str, Question] = {}
    stream = questions(split, seed)
    while len(chosen) < count:
        question = next(stream)
        if question.family == "pair" and question.level >= min_level:
            chosen.setdefault(question.prompt, question)
    return list(chosen.values())


def plan_text(plan: Plan) -> str:
    """A plan as a planner is to write it: whole credits that sum to ``CREDITS``, by largest remainders."""
    return json.dumps(
        {"steps": [{"text": s.text, "credit": c} for s, c in zip(plan.steps, _credits(plan), strict=True)]}
    )


def _credits(plan: Plan) -> list[int]:
    return WEIGHTED([step.weight for step in plan.steps], CREDITS)


def example(question: str, tokenizer: PreTrainedTokenizerBase, template: str | None) -> dict[str, Any]:
    """One supervised example; a thought that the chat template opens is closed at once."""
    messages = [{"role": "user", "content": planning_prompt(question, template=template)}]
    asked = str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    close = "</think>\n\n" if asked.rstrip().endswith("<think>") else ""
    return {
        "prompt": messages,
        "completion": f"{close}{plan_text(plan_question(question))}{tokenizer.eos_token}",
    }


def load_planner(
    model: Path, cache: Path | None, template: str | None = None, max_new_tokens: int = 256
) -> Planner:
    """A planner out of a model's folder, of safetensors in their own dtype or a GGUF file; adapters of PEFT are loaded with
    the model that they name.

    Plans are kept by the weights' hash, so that one that is trained further plans anew.

    Raises:
        InputFileError: when the folder has no weights.
    """
    from transformers import AutoModelForCausalLM

    files = sorted(model.glob("*.safetensors")) or sorted(model.glob("*.gguf"))[:1]
    if not files:
        raise InputFileError(
            f"planner {model}: expected a folder with *.safetensors or *.gguf; correct --planner"
        )
    more = {"gguf_file": files[0].name} if files[0].suffix == ".gguf" else {}
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto", **more).eval()
    name = f"{model.name}@{digest.hexdigest()[:16]}"
    tokenizer = AutoTokenizer.from_pretrained(model, **more)
    writer = ModelWriter(loaded, tokenizer, max_new_tokens=max_new_tokens, name=name)
    return Planner(writer, None if cache is None else PlanCache(cache), template=template)


def plan_all(
    planner: Callable[[str], Plan], asked: Sequence[Question], done: Callable[[int], object] = lambda n: None
) -> list[Plan]:
    """The planner's plan of each question; its weights are the planner's credits."""
    plans = []
    with torch.inference_mode():
        for question in asked:
            plans.append(planner(question.prompt))
            done(1)
    return plans


def agreement(plans: Sequence[Plan], rule: Sequence[Plan]) -> dict[str, float | None]:
    """How well plans agree with those of the rule.

    ``planned`` is the share of questions with a plan that parses; ``same_steps`` of those with the rule's texts in its
    order; ``same_credits`` of those with its credits too, whole hundredths. ``share_off`` is the mean absolute difference
    of a step's share where the steps are the same, None where they never are.
    """
    planned = [plan.source == "planned" for plan in plans]
    same = [
        [s.text for s in p.steps] == [s.text for s in r.steps] and ok
        for p, r, ok in zip(plans, rule, planned, strict=True)
    ]
    pairs = [(_credits(p), _credits(r)) for p, r, ok in zip(plans, rule, same, strict=True) if ok]
    off = [float(np.abs(np.subtract(ours, theirs)).mean()) / CREDITS for ours, theirs in pairs]
    return {
        "planned": float(np.mean(planned)),
        "same_steps": float(np.mean(same)),
        "same_credits": sum(ours == theirs for ours, theirs in pairs) / len(plans),
        "share_off": float(np.mean(off)) if off else None,
        "planner_tokens": float(np.mean([plan.planner_tokens for plan in plans])),
    }


class Counted:
    """A writer that counts replies and seconds of this process."""

    def __init__(self, writer: Writer) -> None:
        self.writer, self.name = writer, writer.name
        self.replies: list[str] = []
        self.seconds = 0.0

    def __call__(self, prompt: str) -> Written:
        start = time.process_time()
        reply = self.writer(prompt)
        self.seconds += time.process_time() - start
        self.replies.append(reply.text)
        return reply


@app.command()
def examples(
    out: Annotated[Path, typer.Option(help="JSON lines to write")] = Path("runs/planner/examples.jsonl"),
    count: Annotated[int, typer.Option("--n", help="questions")] = 1600,
    seed: Annotated[int, typer.Option(help="of the stream of questions")] = 0,
    model: Annotated[Path, typer.Option(help="folder of the tokenizer that will be trained")] = WEIGHTS,
    prompt: Annotated[str | None, typer.Option(help="asked, with {question}")] = SHORT_PROMPT,
) -> None:
    """Write examples of the training split."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    asked = take_pairs("train", count, seed, min_level=2)
    held_out = {question.prompt for question in take_pairs("test", 1000)}
    kept = [question for question in asked if question.prompt not in held_out]
    write_jsonl(out, [example(question.prompt, tokenizer, prompt) for question in kept])
    Console(stderr=True).print(f"{len(kept)} examples, {count - len(kept)} left out as held out: {out}")


@app.command()
def measure(
    planner: Annotated[Path, typer.Option(help="folder of the model")],
    prompt: Annotated[
        str | None, typer.Option(help="asked, with {question}; the project's if left out")
    ] = None,
    count: Annotated[int, typer.Option("--n", help="questions")] = 40,
    split: Annotated[str, typer.Option(help="stream of questions")] = "test",
    max_new_tokens: Annotated[int, typer.Option(help="of a reply")] = 256,
    show: Annotated[int, typer.Option(help="replies to print")] = 1,
) -> None:
    """Print how many plans a planner writes, how they agree with the rule, and what they cost."""
    made = load_planner(planner, None, prompt, max_new_tokens)
    counted = Counted(made.writer)
    made.writer = counted
    asked = take_pairs(split, count)
    with progress_bar(Console(stderr=True)) as progress:
        task = progress.add_task("planning", total=count)
        plans = plan_all(made, asked, lambda n: progress.advance(task, n))
    row: dict[str, Any] = agreement(plans, [plan_question(question.prompt) for question in asked])
    row |= {"n": count, "replies": len(counted.replies) / count, "seconds": counted.seconds / count}
    console = Console()
    for reply in counted.replies[:show]:
        console.print(reply, markup=False)
    console.print_json(json.dumps(row))


if __name__ == "__main__":
    app()
