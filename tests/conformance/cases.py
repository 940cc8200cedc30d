"""What is asked of an engine: prompts and limits, as token ids and knobs. No engine is named here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from budgetctl.delimiters import ThinkingDelimiters
from tests.conformance.model import DIGIT, EOS, LINE, OPEN, TOOL

A, B, USER, BOT, HEAD, CLOSE = 5, 6, 7, 8, 9, 11
ROWS = 6

SINGLE = ThinkingDelimiters((OPEN,), ((CLOSE,),), (CLOSE,), (BOT, HEAD), ((OPEN,),), eos_ids=(EOS,))
TEMPLATE = replace(SINGLE, opened_by_template=True)
SPELLED = replace(
    TEMPLATE,
    open_variants=((OPEN,), (16, 17)),
    natural_end_ids=((12, 13, 14), (15, 13, 14), (15, 14)),
    forced_end_ids=(12, 13, 14),
)
TEXTS = [[A], [A, B, A], [DIGIT, A], [B, B, A, A, B], [B], [A, DIGIT, B, A]]
FREE = {"thinking_budget": None}


@dataclass(frozen=True)
class Case:
    """Prompts and limits of one conformance case.

    Args:
        name: row of the table.
        delimiters: markers of the thought.
        knobs: what is asked, by name; a list has one value a prompt.
        asked: tokens of the user's message, before the prompt's own, in every row.
        history: whole turns before it.
        begun: tokens of the thought that the prompt already holds.
        needs: what an engine must be able to do (``structured``).
        bites: rows of which the unlimited thought must break the limit, or the case would show nothing.
        max_new_tokens: of the generation.
    """

    name: str
    delimiters: ThinkingDelimiters = TEMPLATE
    knobs: dict[str, Any] = field(default_factory=dict)
    asked: tuple[int, ...] = ()
    history: tuple[int, ...] = ()
    begun: tuple[int, ...] = ()
    needs: frozenset[str] = frozenset()
    bites: int = 1
    max_new_tokens: int = 28

    def prompts(self) -> list[list[int]]:
        opening = (*self.delimiters.open_ids, *self.delimiters.lead_ids)
        if not self.delimiters.opened_by_template:
            opening = ()
        return [[*self.history, USER, *self.asked, *text, BOT, HEAD, *opening, *self.begun] for text in TEXTS]

    def knob(self, name: str, row: int) -> Any:
        """The value of one knob for the prompt ``row``."""
        value = self.knobs.get(name)
        return value[row] if isinstance(value, list) else value

    def for_rows(self, rows: list[int]) -> dict[str, Any]:
        """The knobs of some prompts alone."""
        return {
            name: [value[row] for row in rows] if isinstance(value, list) else value
            for name, value in self.knobs.items()
        }


def _budget(value: int) -> dict[str, Any]:
    return {"thinking_budget": value}


CASES = [
    Case("budget 0", knobs=_budget(0)),
    Case("budget 1", knobs=_budget(1)),
    Case("budget 7", knobs=_budget(7)),
    Case("no budget", knobs={"thinking_budget": None}, bites=0),
    Case("mixed budgets", knobs={"thinking_budget": [0, 1, 3, 9, None, 17]}),
    Case("prompt over its budget", knobs=_budget(3), begun=(A, B, A, B, A)),
    Case("line break after the marker", replace(TEMPLATE, lead_ids=(LINE,)), _budget(2)),
    Case(
        "closed thought in history",
        knobs=_budget(3),
        history=(USER, A, BOT, HEAD, OPEN, B, A, B, CLOSE, A, EOS),
    ),
    Case("markers typed by the user", knobs=_budget(3), asked=(OPEN, A, CLOSE, OPEN, B)),
    Case("close of several tokens", SPELLED, {"thinking_budget": [1, 2, 3, 4, 5, 6]}),
    Case("close half-written in the prompt", SPELLED, _budget(3), begun=(A, 12)),
    Case("re-opened thought", SINGLE, _budget(6), max_new_tokens=40),
    Case("implicit thought", replace(SINGLE, implicit=True), _budget(4)),
    Case("tool call inside a thought", replace(TEMPLATE, tool_call_ids=((TOOL,),)), _budget(5)),
    Case("closed by a phrase", replace(TEMPLATE, forced_end_ids=(LINE, DIGIT, CLOSE)), _budget(4)),
    Case(
        "answer reserve", knobs={"thinking_budget": [None, 30, 4, 22, None, 9], "answer_reserve": 12}, bites=0
    ),
    Case("minimum", knobs={"min_thinking_tokens": 4, "thinking_budget": 9}),
    Case("target", knobs={"thinking_target": 10, "target_tolerance": 2}, bites=0),
    Case("extension", knobs={"max_extensions": 2, "extension_phrase": "w5", "thinking_budget": 8}),
    Case("efforts", knobs={"effort": ["low", "high", 0.3, "minimal", "xhigh", "none"]}, bites=0),
    Case("grammar after the thought", knobs=_budget(4), needs=frozenset({"structured"})),
]
