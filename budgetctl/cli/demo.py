"""``budgetctl demo``: one question at several efforts, an easy and a hard one at the same effort, and a hard cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.columns import Columns
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from budgetctl.cli.options import Device, Json, Model, Predictor, Seed
from budgetctl.cli.render import THOUGHT_STYLE, clean_stdout, emit_json, out, summary_line

if TYPE_CHECKING:
    from budgetctl.cli.answer import Answer
    from budgetctl.evals.load import LoadedModel
    from budgetctl.reasoner.tasks import Question

EFFORTS = ("none", "minimal", "low", "medium", "high", "max")
#: The effort at which easy and hard are compared.
SHARED_EFFORT = "medium"
FAMILY, HARD, EASY = "pair", 6, 3
#: An example whose free thought is a long one; any other can be asked for with --seed.
SEED = 13
#: The limit of each generation, in tokens.
MAX_NEW_TOKENS = 512


@dataclass(frozen=True)
class Attempt:
    """An answer to a question under a label (an effort or a method)."""

    label: str
    question: Question
    answer: Answer

    @property
    def correct(self) -> bool:
        return self.answer.close != "none" and self.question.is_correct(self.answer.answer)

    def as_dict(self) -> dict[str, Any]:
        return {"label": self.label, "correct": self.correct, **self.answer.as_dict()}


@dataclass(frozen=True)
class Demonstration:
    """``efforts``: the hard question at every effort. ``shared``: easy and hard at one effort, in one batch.
    ``hard_cut``: the hard question cut at the budget that it had there."""

    efforts: list[Attempt]
    shared: list[Attempt]
    hard_cut: Attempt


def demo(
    model: Model = None,
    predictor: Predictor = None,
    device: Device = None,
    seed: Seed = SEED,
    as_json: Json = False,
) -> None:
    """Show the embedded reasoner thinking under a budget (under a minute, no network)."""
    with clean_stdout(as_json):
        from budgetctl.cli import load
        from budgetctl.errors import PredictorError

        place = load.choose_device(device)
        artifact = load.open_predictor(model, predictor)
        if artifact is None:
            raise PredictorError(
                "the demo needs a length predictor for this model: expected --predictor with --model; pass both or neither"
            )
        shown = demonstrate(load.open_model(model, artifact, place), seed)
    if as_json:
        emit_json(
            {
                "efforts": [a.as_dict() for a in shown.efforts],
                "shared_effort": SHARED_EFFORT,
                "shared": [a.as_dict() for a in shown.shared],
                "hard_cut": shown.hard_cut.as_dict(),
            }
        )
        return
    _show(out(), shown)


def demonstrate(loaded: LoadedModel, seed: int) -> Demonstration:
    """Run the demo; all rows draw from the noise of ``seed``."""
    from budgetctl.cli.answer import answer_batch
    from budgetctl.cli.requests import Settings, make_request

    settings = Settings(max_new_tokens=MAX_NEW_TOKENS, seed=seed)
    hard, easy = _question(HARD, seed), _question(EASY, seed)

    def ask(
        questions: list[Question], efforts: list[str | None], budget: int | None = None, steered: bool = True
    ) -> list[Answer]:
        requests = [
            make_request(
                q.prompt, {"effort": effort, "thinking_budget": budget}, settings, has_predictor=True
            )
            for q, effort in zip(questions, efforts, strict=True)
        ]
        return answer_batch(loaded, requests, settings, [seed] * len(requests), steered=steered)

    answers = ask([hard] * len(EFFORTS), list(EFFORTS))
    efforts = [Attempt(effort, hard, a) for effort, a in zip(EFFORTS, answers, strict=True)]
    pair = ask([easy, hard], [SHARED_EFFORT] * 2)
    shared = [Attempt(f"{q.level} steps", q, a) for q, a in zip((easy, hard), pair, strict=True)]
    cut = ask([hard], [None], pair[1].thinking_budget, steered=False)
    return Demonstration(efforts, shared, Attempt("hard cut", hard, cut[0]))


def _question(level: int, seed: int) -> Question:
    """A held-out question of that many steps."""
    from budgetctl.reasoner.tasks import questions

    return next(q for q in questions("test", seed) if q.family == FAMILY and q.level == level)


def _show(console: Console, shown: Demonstration) -> None:
    hard = shown.efforts[0].question
    console.rule("One question, several efforts", align="left")
    console.print(Text(hard.prompt, style="bold"), Text(f"(expected: {hard.answer})"), sep="\n")
    console.print(
        Text(
            "Effort is a share of the length that is predicted to suffice for this question. Same noise every time. This is one example: "
            "figures over many questions are in docs/benchmarks.md.\n"
        )
    )
    # Two, three or six panels a line, as there is room.
    across = max(n for n in (1, 2, 3, 6) if n == 1 or n * 34 <= console.width)
    width = (console.width - across + 1) // across
    console.print(Columns([_panel(a, f"effort {a.label}", width) for a in shown.efforts], padding=(0, 1)))
    console.print(_table("effort", shown.efforts))
    console.print()
    console.rule(f"The same effort ({SHARED_EFFORT}), an easy and a hard question in one batch", align="left")
    for attempt in shown.shared:
        console.print(Text(attempt.question.prompt, style="bold"))
    console.print(_table("question", shown.shared))
    console.print(Text("The harder question gets the longer budget.\n" if _harder_gets_more(shown) else ""))
    budget = shown.hard_cut.answer.thinking_budget
    console.rule(f"The hard one under {budget} tokens: steered, and cut when they are spent", align="left")
    pair = [shown.shared[1], shown.hard_cut]
    half = (console.width - 1) // 2
    titles = ("budgetctl", "hard cut")
    console.print(Columns([_panel(a, t, half) for a, t in zip(pair, titles, strict=True)], padding=(0, 1)))


def _harder_gets_more(shown: Demonstration) -> bool:
    easy, hard = (a.answer.thinking_budget or 0 for a in shown.shared)
    return hard > easy


def _panel(attempt: Attempt, title: str, width: int) -> Panel:
    answer = attempt.answer
    verdict = Text("correct", style="green") if attempt.correct else Text("wrong", style="red")
    body = Group(
        Text(answer.thinking or "(no thought)", style=THOUGHT_STYLE),
        Text(),
        Text.assemble(Text(answer.answer or "(no answer)", style="bold"), " ", verdict),
        Text(summary_line(answer), style="cyan"),
    )
    return Panel(body, title=title, title_align="left", width=width)


def _table(what: str, attempts: list[Attempt]) -> Table:
    table = Table(what, *("predicted", "budget", "used", "closed", "answer", "right"))
    for column in table.columns[1:4]:
        column.justify = "right"
    for attempt in attempts:
        a = attempt.answer
        table.add_row(
            attempt.label,
            "" if a.predicted_tokens is None else f"{a.predicted_tokens:.0f}",
            "" if a.thinking_budget is None else str(a.thinking_budget),
            str(a.thinking_tokens),
            a.close,
            Text(a.answer.removeprefix("Answer:").strip()[:24]),
            Text("yes", style="green") if attempt.correct else Text("no", style="red"),
        )
    return table
