"""An answer with the trace of its tokens, and in one sentence why its thought closed where it did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from budgetctl.cli.answer import Answer, answer
from budgetctl.cli.requests import Request, Settings
from budgetctl.controller import BudgetController
from budgetctl.evals.load import LoadedModel
from budgetctl.replay import replay
from budgetctl.step_trace import StepTrace

#: A token counts as steered from this divergence on (nats).
STEERED = 0.05


@dataclass(frozen=True)
class Explanation:
    """``steps`` are all generated tokens; ``effort``, ``cap`` (tokens) and ``further`` are what was asked for."""

    answer: Answer
    effort: str
    cap: int | None
    steps: list[StepTrace]
    further: tuple[str, ...] = ()

    @property
    def thought(self) -> list[StepTrace]:
        """The tokens of the thought and its close."""
        return [step for step in self.steps if step.thinking]

    @property
    def steered(self) -> list[StepTrace]:
        """Tokens of the thought that the controller steered, forced ones left out."""
        return [step for step in self.thought if step.kl >= STEERED and not step.forced]

    @property
    def limit(self) -> str:
        """What was asked for, like ``effort low, at most 40 tokens``."""
        asked = [] if self.effort == "auto" else [f"effort {self.effort}"]
        if self.cap is not None and self.effort != "none":
            asked.append(f"at most {_tokens(self.cap)}")
        return ", ".join((*asked, *self.further)) or "no limit"

    @property
    def why(self) -> str:
        """Why the thought closed there, a sentence."""
        kind = self.answer.close
        first = next((step for step in self.steps if step.closes), None)
        if first is None or kind == "none":
            if not self.thought:
                return "There was no thought."
            return f"The thought was not closed: the generation ended after {len(self.steps)} new tokens."
        rest = "" if first.left is None else f" with {_tokens(first.left)} left"
        own = _share(first.probability)
        wish = f"the close had a probability of {own}"
        guided = _share(first.guided_probability)
        change = "with guidance or without" if guided == own else f"without guidance and {guided} with it"
        if kind == "natural":
            return f"The model closed the thought itself{rest}: {wish} {change}."
        if kind == "steered":
            return f"Guidance tipped it{rest}: {wish} {change}."
        if kind == "early":
            return f"Trial answers ended it{rest}: they showed that the answer was there; {wish} by itself."
        if first.left == 0 and first.budget is not None and first.used >= first.budget:
            cause = f"the budget of {_tokens(first.budget)} was spent"
        elif first.left == 0:
            cause = "the tokens kept for the answer begin there"
        else:
            cause = f"a line or sentence ended{rest}, and the thought was not likely to end in time by itself"
        return f"The controller wrote the close: {cause}; {wish} by itself."

    def as_dict(self) -> dict[str, Any]:
        return {
            "result": self.answer.as_dict(),
            "limit": self.limit,
            "why": self.why,
            "steered_tokens": len(self.steered),
            "steps": [step.as_dict() for step in self.steps],
        }


def explain_answer(loaded: LoadedModel, request: Request, settings: Settings) -> Explanation:
    """Answer a request, then replay what was generated."""
    kept: list[_Recorder] = []

    def recorder(controller: BudgetController) -> BaseStreamer:
        kept.append(_Recorder(controller))
        return kept[-1]

    (told,) = answer(loaded, [request], settings, streamer_for=recorder)
    (record,) = kept
    sequence = torch.cat(record.pieces)
    steps = replay(
        loaded.installation, sequence, len(record.pieces[0]), controller=record.controller, padding=0
    )
    budget = request.budget
    return Explanation(told, budget.effort.name, budget.cap, steps, _further(request, settings))


def _further(request: Request, settings: Settings) -> tuple[str, ...]:
    """What was asked for beside effort and budget, in words."""
    asked = []
    if request.thinking_target is not None:
        around = "" if request.target_tolerance is None else f" ± {request.target_tolerance}"
        asked.append(f"a target of {request.thinking_target}{around} tokens")
    if request.min_thinking_tokens:
        asked.append(f"at least {_tokens(request.min_thinking_tokens)}")
    if settings.max_extensions is not None:
        asked.append(f"at most {_times(settings.max_extensions)} extended")
    if settings.early_exit is not None:
        asked.append(f"early exit by {settings.early_exit.method}")
    return tuple(asked)


class _Recorder(BaseStreamer):
    """Keeps controller, prompt and tokens of a generation."""

    def __init__(self, controller: BudgetController) -> None:
        self.controller = controller
        self.pieces: list[torch.Tensor] = []

    def put(self, value: torch.Tensor) -> None:
        self.pieces.append(value.reshape(-1).cpu())

    def end(self) -> None:
        pass


def _share(probability: float) -> str:
    """Like ``12 %``, with ``below 1 %`` for little."""
    return "below 1 %" if probability < 0.01 else f"{100 * probability:.0f} %"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"
