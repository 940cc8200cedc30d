"""An agent with a calculator, its thoughts and calls held to their budgets: ``python -m budgetctl.evals.agent``.

``--scripted`` plays a model that works out products term by term, to show the loop without one; else a Hugging Face model replies,
whose thoughts are opened and closed by the tags that are given.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from budgetctl.delimiters import find_delimiters
from budgetctl.errors import BudgetctlError
from budgetctl.integrations.transformers import install
from budgetctl.plan.agent import AgentRun, Message, Reply, ThinkingModel, run_agent
from budgetctl.plan.calculator import calculate
from budgetctl.plan.tracker import BudgetTracker, ToolBudget

QUESTION = "What is 17 * 23 + 41 * 19 - 8 * 7?"


def scripted(messages: Sequence[Message], tracker: BudgetTracker) -> Reply:
    """Calls the calculator for each product of the question, then for their sum, as long as calls are left."""
    terms = re.findall(r"([+-]?)\s*(\d+ \* \d+)", messages[0]["content"].partition("What is")[2])
    results = [
        found[1]
        for message in messages[1:]
        if (found := re.match(r"calculator gives (-?\d+)", message["content"]))
    ]
    thought = 12
    if len(results) > len(terms):
        return Reply(f"The answer is {results[-1]}.", thought)
    if not tracker.tools["calculator"].left:
        return Reply(f"No calls are left; these I know: {', '.join(results)}", thought)
    if len(results) < len(terms):
        return Reply(f"The next product.\ncalculator: {terms[len(results)][1]}", thought)
    total = " ".join(f"{sign} {value}" for (sign, _), value in zip(terms, results, strict=True))
    return Reply(f"Their sum.\ncalculator: {total.strip()}", thought)


def show(console: Console, run: AgentRun) -> None:
    """Turn by turn, and what was spent."""
    for number, turn in enumerate(run.turns, start=1):
        console.print(f"-- reply {number}: {turn.reply.thinking_tokens} thinking tokens", markup=False)
        console.print(turn.reply.text, markup=False, soft_wrap=True)
        if turn.tool is not None:
            console.print(
                f"   {turn.tool}({turn.argument}) gives {turn.result}", markup=False, soft_wrap=True
            )
    console.print(run.tracker.text(), markup=False)
    console.print(
        f"cost {run.tracker.cost:g}; {run.note_tokens} of the thinking tokens were notes", markup=False
    )


def main(
    question: Annotated[str, typer.Argument(help="answered with the calculator")] = QUESTION,
    calls: Annotated[int, typer.Option(help="of the calculator", min=0)] = 4,
    price: Annotated[float, typer.Option(help="of a call, in tokens")] = 20.0,
    thinking_tokens: Annotated[int, typer.Option(help="of all thoughts together", min=0)] = 400,
    max_turns: Annotated[int, typer.Option(help="replies at most", min=1)] = 8,
    model: Annotated[str | None, typer.Option(help="directory or hub id")] = None,
    gguf_file: Annotated[str | None, typer.Option(help="name of a GGUF file in the directory")] = None,
    open_text: Annotated[
        str | None,
        typer.Option(help="marker that the prompt opens the thought with, where the model has none"),
    ] = None,
    close_text: Annotated[str | None, typer.Option(help="marker that ends it")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="of a reply, thought and answer")] = 256,
    seed: Annotated[int | None, typer.Option(help="samples with it; greedy if left out")] = None,
    script: Annotated[bool, typer.Option("--scripted", help="a played model")] = False,
) -> None:
    """Answer QUESTION with a calculator, inside the budgets."""
    if script == (model is not None):
        raise BudgetctlError("expected --model or --scripted; give one of the two")
    tracker = BudgetTracker(thinking_tokens, tools={"calculator": ToolBudget(calls, price)})
    agent: Any = scripted
    if model is not None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model, gguf_file=gguf_file)
        loaded = AutoModelForCausalLM.from_pretrained(model, gguf_file=gguf_file, dtype=torch.float32).eval()
        delimiters = None
        if open_text is not None:
            tokenizer.chat_template += "{% if add_generation_prompt %}" + open_text + "\n{% endif %}"
            delimiters = find_delimiters(tokenizer, open_text=open_text, close_text=close_text)
        if seed is not None:
            torch.manual_seed(seed)
        sampling = {"do_sample": seed is not None}
        agent = ThinkingModel(
            install(loaded, tokenizer, delimiters=delimiters), max_new_tokens=max_new_tokens, **sampling
        )
    show(Console(), run_agent(question, agent, {"calculator": calculate}, tracker, max_turns))


if __name__ == "__main__":
    typer.run(main)
