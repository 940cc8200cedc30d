"""Options that every command shares."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from budgetctl.errors import InputFileError


def whole_number(value: str | int, of: str = "tokens") -> int:
    """Read a number of tokens; its range is checked with the other limits."""
    try:
        return int(value)
    except ValueError:
        raise typer.BadParameter(f"{value!r} is no whole number: expected {of}") from None


def times(value: str | int) -> int:
    """Read how many times."""
    return whole_number(value, "a number of times")


def read_prompt(given: str | None) -> str | None:
    """The prompt of a command line; ``-`` reads it from stdin.

    Raises:
        InputFileError: when stdin is not UTF-8.
    """
    if given != "-":
        return given
    try:
        return sys.stdin.read().strip()
    except UnicodeDecodeError:
        raise InputFileError("stdin is not UTF-8: expected text; convert it") from None


Model = Annotated[
    str | None,
    typer.Option(
        "--model", help="Directory or hub id of a causal language model; the embedded reasoner if left out."
    ),
]
Predictor = Annotated[
    str | None,
    typer.Option("--predictor", help="Directory or hub id of the model's length predictor."),
]
Device = Annotated[
    str | None, typer.Option("--device", help="For example cpu or cuda; by default cuda where there is one.")
]
Seed = Annotated[int, typer.Option("--seed", help="Of every random draw.", min=0, max=2**62)]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else there.")]
Effort = Annotated[
    str | None,
    typer.Option(
        "--effort",
        help="none, minimal, low, medium, high, xhigh, max, auto, or a share in (0, 1] of the natural length "
        "predicted for the question.",
    ),
]
Budget = Annotated[
    int | None,
    typer.Option(
        "--thinking-budget",
        parser=whole_number,
        metavar="TOKENS",
        help="At most this many thinking tokens; 0 closes the thought at once.",
    ),
]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", help="Thought and answer together.", min=1)]
MinThinkingTokens = Annotated[
    int | None,
    typer.Option(
        "--min-thinking-tokens",
        parser=whole_number,
        metavar="TOKENS",
        help="The thought is not closed before this many tokens.",
    ),
]
ThinkingTarget = Annotated[
    int | None,
    typer.Option(
        "--thinking-target",
        parser=whole_number,
        metavar="TOKENS",
        help="The thought is this many tokens long, give or take --target-tolerance.",
    ),
]
TargetTolerance = Annotated[
    int | None,
    typer.Option(
        "--target-tolerance",
        parser=whole_number,
        metavar="TOKENS",
        help="How far from --thinking-target is near enough; a tenth of it if left out.",
    ),
]
MaxExtensions = Annotated[
    int | None,
    typer.Option(
        "--max-extensions",
        parser=times,
        metavar="TIMES",
        help="Where the model would close its thought, let it go on at most so often: below --min-thinking-tokens if "
        "that is given, else at each close.",
    ),
]
ExtensionPhrase = Annotated[
    str | None,
    typer.Option("--extension-phrase", help="What is written there; Wait if left out.", show_default=False),
]
TransitionPhrase = Annotated[
    str | None,
    typer.Option(
        "--transition-phrase",
        help='Written before a forced close, for example "Time is up, so I answer now."',
        show_default=False,
    ),
]
EarlyExitRule = Annotated[
    str | None,
    typer.Option(
        "--early-exit",
        metavar="METHOD|JSON",
        help="End the thought where trial answers show that the answer is there: confidence, agreement, or JSON such "
        'as {"method": "confidence", "threshold": 0.9}. The trial answers cost tokens, which are told.',
        show_default=False,
    ),
]
AnswerReserve = Annotated[
    int | None,
    typer.Option(
        "--answer-reserve",
        parser=whole_number,
        metavar="TOKENS",
        help="Tokens of --max-new-tokens kept for the answer; a quarter of them, at most 256, if left out.",
    ),
]
GuidanceStrength = Annotated[
    float | None,
    typer.Option(
        "--guidance-strength",
        help="How strongly to steer; 0 turns steering off; the predictor has a default.",
    ),
]
GuidedSteps = Annotated[
    str | None,
    typer.Option(
        "--guided-steps",
        metavar="STEPS",
        help="Steer at every token (every, the default), at the first of each line (line) or of the thought (first).",
        show_default=False,
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        help="0 decodes greedily; if left out, what the model's generation config says (1 for the embedded "
        "reasoner). No top-p or top-k is applied.",
    ),
]
KVBudgetText = Annotated[
    str | None,
    typer.Option(
        "--kv-budget",
        metavar="SLOTS|SHARE|BYTES",
        help="Keys and values that are kept: tokens a head of each prompt (512), a share of what it could come to (25%), "
        "or bytes for all prompts that are answered at once (64MiB).",
        show_default=False,
    ),
]
KVPolicy = Annotated[
    str | None,
    typer.Option(
        "--kv-policy",
        metavar="NAME",
        help="What is given up beyond --kv-budget: diverse-max (the default), decayed-max, window, h2o, tova, defensive, snapkv, r-kv "
        "or keydiff.",
        show_default=False,
    ),
]
KVMaxLoss = Annotated[
    float | None,
    typer.Option(
        "--kv-max-loss",
        metavar="MASS",
        help="A thought is told to finish when the attention of what was given up comes to this.",
        show_default=False,
    ),
]
PlanText = Annotated[
    str | None,
    typer.Option(
        "--plan",
        metavar="auto|JSON|FILE",
        help="Work in steps, each held to its share of the budget: auto makes a plan for each prompt, or give one, such as "
        '["find the speed", {"text": "find the time", "weight": 2}].',
        show_default=False,
    ),
]
PlanSchedule = Annotated[
    str | None,
    typer.Option(
        "--plan-schedule",
        metavar="NAME",
        help="How the steps share the budget: weighted (the default), uniform, linear, polynomial, exponential, cosine, rex, "
        "uba, bam_eq6, bam_exact or greedy; some take a parameter, such as polynomial(3).",
        show_default=False,
    ),
]
PlanFloor = Annotated[
    float | None,
    typer.Option(
        "--plan-floor", metavar="PART", help="Least part of an even share of each step, 0.25 if left out."
    ),
]
PlanFirmness = Annotated[
    float | None,
    typer.Option(
        "--plan-firmness",
        metavar="PART",
        help="Part of the later steps' shares that is kept for them when a step takes longer, 0.5 if left out.",
    ),
]
ShowPlan = Annotated[bool, typer.Option("--show-plan", help="Write the plan into the prompt as well.")]
BudgetNotesFlag = Annotated[
    bool,
    typer.Option(
        "--budget-notes",
        help="Write what is left into the thought where a step of --plan begins; these tokens are counted and told.",
    ),
]
PlannerModel = Annotated[
    str | None,
    typer.Option(
        "--planner",
        metavar="MODEL",
        help="For --plan auto: a model behind an OpenAI-compatible endpoint; the model that answers if left out.",
        show_default=False,
    ),
]
PlannerUrl = Annotated[
    str | None, typer.Option("--planner-url", metavar="URL", help="Of that endpoint.", show_default=False)
]
PlanCacheFolder = Annotated[
    Path | None,
    typer.Option(
        "--plan-cache", metavar="DIR", help="Where plans that were made are kept.", show_default=False
    ),
]
