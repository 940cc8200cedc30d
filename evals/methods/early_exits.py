"""Thoughts that end where the answer is already there: DEER, Dynasor, and the same test inside budgetctl's budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from budgetctl.evals.harness.answer import Answer
from budgetctl.evals.harness.method import Engine, Item, Setting
from budgetctl.evals.methods.forcing import budget_of
from budgetctl.evals.methods.model_texts import ModelTexts, texts_for
from budgetctl.evals.methods.single_call import answer_in_one_call

#: DEER's threshold of confidence; Dynasor's middle setting, three equal answers.
THRESHOLD, WINDOW = 0.95, 3


def confident(texts: ModelTexts) -> dict[str, Any]:
    """DEER (arXiv 2504.15895): the tokens of a trial answer have a geometric mean of probabilities of at least 0.95.

    Trial answers are asked for at lines with "Wait" in them. Of the paper's two means the geometric one, with a close before
    the answer, as for Qwen3; the paper probes before "Wait" rather than at the end of its line.
    """
    return {
        "method": "confidence",
        "threshold": THRESHOLD,
        "every": "line",
        "turn": texts.turn,
        "answer_prompt": texts.confidence_prompt,
        "probe_tokens": texts.probe_tokens,
    }


def agreeing(texts: ModelTexts) -> dict[str, Any]:
    """Dynasor, Certaindex (arXiv 2412.20993): three trial answers in a row, one every 64 tokens, are equal.

    Here the thought is closed before the trial answer, and answers with words of doubt count like others.
    """
    return {
        "method": "agreement",
        "window": WINDOW,
        "every": texts.chunk,
        "answer_prompt": texts.agreement_prompt,
        "probe_tokens": texts.probe_tokens,
    }


class EarlyExitMethod:
    """An early exit without guidance. A budget, where one is given, is a cap: the thought is closed at a line end in its last
    tenth, and at the latest when it is spent.

    Args:
        name: of the method.
        rule: fields of :class:`~budgetctl.early_exit.EarlyExit`, from the model's texts.
        capped: whether it takes a budget.
    """

    def __init__(self, name: str, rule: Callable[[ModelTexts], dict[str, Any]], capped: bool = False) -> None:
        self.name = name
        self.rule = rule
        self.takes: Literal["budget", "effort", "none"] = "budget" if capped else "none"

    def answer(
        self,
        engine: Engine,
        items: Sequence[Item],
        setting: Setting,
        seeds: Sequence[int] | None,
        max_new_tokens: int,
    ) -> list[Answer]:
        """One answer an item, in order, all in one batch."""
        cap = budget_of(self.name, setting) if self.takes == "budget" else setting.budget
        knobs = {"early_exit": self.rule(texts_for(engine)), "thinking_budget": cap, "guidance_strength": 0.0}
        return answer_in_one_call(
            self.name, engine, items, setting, seeds, max_new_tokens, probes=True, knobs=knobs
        )


class BudgetctlExit:
    """budgetctl with ``thinking_budget`` and an early exit by confidence."""

    name = "budgetctl-exit"
    takes: Literal["budget", "effort", "none"] = "budget"

    def answer(
        self,
        engine: Engine,
        items: Sequence[Item],
        setting: Setting,
        seeds: Sequence[int] | None,
        max_new_tokens: int,
    ) -> list[Answer]:
        """One answer an item, in order, all in one batch."""
        rule = confident(texts_for(engine)) | {"turn": None}  # at every line
        knobs = {"thinking_budget": budget_of(self.name, setting), "early_exit": rule}
        return answer_in_one_call(
            self.name, engine, items, setting, seeds, max_new_tokens, probes=True, knobs=knobs
        )
