"""Notes for the model inside its thought: what is left of its budgets, and how to go on.

After Budget Tracker (BATS, arXiv 2511.17006), which appends such a text to the results of tools, and BudgetThinker (arXiv
2508.17196), which puts control tokens into the thought. What a note says of a running thought is rounded down to a twentieth of
its budget, so that all notes of a request are known, and spelled, before its first token.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from budgetctl.checks import shown
from budgetctl.delimiters import ThinkingDelimiters, Tokens
from budgetctl.errors import BudgetError
from budgetctl.phrases import phrase_ids
from budgetctl.plan.tracker import REGIMES, BudgetTracker
from budgetctl.protect import FENCE

#: Parts of a budget that notes tell apart.
LEVELS = 20
TEMPLATE = "[{budget} left{tools}. {regime}: {advice}]"
FIELDS = ("budget", "tools", "regime", "advice")


@dataclass(frozen=True)
class BudgetNotes:
    """What is told about one request.

    Args:
        tracker: budgets that outlast the thought, tools' among them, as they stand before it: a note opens the thought then. None
            for the thought's own budget.
        template: of a note, one line, with the fields ``FIELDS``.

    Raises:
        BudgetError: for a template that is no line, or has other fields.
    """

    tracker: BudgetTracker | None = None
    template: str = TEMPLATE

    def __post_init__(self) -> None:
        text = self.template
        if not isinstance(text, str) or not text.strip() or "\n" in text or FENCE in text:
            raise BudgetError(
                f"budget_notes with template {shown(text)}: expected one line of text without a code fence; correct it"
            )
        try:
            fields = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
        except ValueError as error:
            raise BudgetError(
                f"budget_notes with template {shown(text)} ({error}): correct its braces"
            ) from None
        if not fields <= set(FIELDS):
            raise BudgetError(
                f"budget_notes with template {shown(text)}: expected no fields but {', '.join(FIELDS)}; correct it"
            )

    @classmethod
    def of(cls, value: Any) -> BudgetNotes | None:
        """From ``True``, a tracker, or an object with ``tracker`` and ``template``; None for None and ``False``.

        Raises:
            BudgetError: for anything else.
        """
        if value is None or value is False:
            return None
        if value is True:
            return cls()
        if isinstance(value, BudgetNotes):
            return value
        if isinstance(value, BudgetTracker):
            return cls(value)
        if not isinstance(value, Mapping) or not set(value) <= {"tracker", "template"}:
            raise BudgetError(
                f"budget_notes={shown(value)}: expected true, a BudgetTracker, or an object with tracker and template; correct it"
            )
        tracker = value.get("tracker")
        return cls(None if tracker is None else BudgetTracker.of(tracker), value.get("template", TEMPLATE))

    def opening(self) -> str | None:
        """The note that opens the thought; None without a tracker."""
        if self.tracker is None:
            return None
        return self._line(f"{self.tracker.left} of {self.tracker.tokens} thinking tokens", self.tracker)

    def at_level(self, level: int, total: int | None) -> str:
        """The note where ``level`` twentieths of a thought's budget are left.

        Args:
            level: 0 to ``LEVELS``.
            total: the thought's budget in tokens, None where it is not known in advance.
        """
        if total is None:
            base = self.tracker or BudgetTracker(100)
            part = BudgetTracker(LEVELS, LEVELS - level, base.tools)
            return self._line(f"about {100 * level // LEVELS} % of the thinking tokens", part)
        now = (self.tracker or BudgetTracker(total)).think(total - total * level // LEVELS)
        return self._line(f"about {now.left} of {now.tokens} thinking tokens", now)

    def _line(self, budget: str, tracker: BudgetTracker) -> str:
        regime = tracker.regime
        tools = "".join(
            f"; {name}: {tool.left} of {tool.calls} calls" for name, tool in tracker.tools.items()
        )
        advice = next(text for name, _, text in REGIMES if name == regime).rstrip(".")
        return self.template.format(budget=budget, tools=tools, regime=regime, advice=advice) + "\n"


@dataclass(frozen=True)
class SpelledNotes:
    """The notes of one request in the tokens of a model: that which opens the thought (empty for none), and by level."""

    opening: Tokens
    levels: tuple[Tokens, ...]

    @classmethod
    def spell(
        cls,
        notes: BudgetNotes,
        total: int | None,
        planned: bool,
        tokenizer: PreTrainedTokenizerBase,
        delimiters: ThinkingDelimiters,
    ) -> SpelledNotes:
        """Spell them.

        Args:
            notes: of the request.
            total: the thought's budget in tokens, None where it is not known in advance.
            planned: the request has a plan, at whose steps there are notes.
            tokenizer: of the model.
            delimiters: the markers of its thoughts.

        Raises:
            BudgetError: for a template that holds a marker or an end of sequence.
        """
        opening = notes.opening()
        texts = [notes.at_level(level, total) for level in range(LEVELS + 1)] if planned else []
        return cls(
            () if opening is None else phrase_ids(tokenizer, delimiters, opening, "budget_notes"),
            tuple(phrase_ids(tokenizer, delimiters, text, "budget_notes") for text in texts),
        )

    def tokens_in(self, thought: Tokens, line: Any) -> int:
        """Tokens of the notes that stand in a thought.

        Args:
            thought: its token ids.
            line: [V] bool, tokens that end a line.
        """
        every = sorted({ids for ids in (self.opening, *self.levels) if ids}, key=len, reverse=True)
        at = count = 0
        while at < len(thought):
            fresh = at == 0 or bool(line[thought[at - 1]])
            size = next((len(ids) for ids in every if fresh and thought[at : at + len(ids)] == ids), 0)
            count += size
            at += size or 1
        return count
