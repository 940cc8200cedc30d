"""How an engine is asked, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from budgetctl.telemetry import ThoughtReport
from tests.conformance.cases import Case


@dataclass(frozen=True)
class Row:
    """One generated sequence: the prompt it answers, its new ids (padding cut), its report (None without budgetctl)."""

    prompt: int
    new_ids: list[int]
    report: ThoughtReport | None


class Engine(Protocol):
    """One way to decode.

    ``can`` are the needs of cases that it can meet. ``draws`` says that tokens are drawn, so that rows share the noise
    of their batch; ``follows_greedy`` that it writes what greedy decoding writes; ``alone`` that it takes one prompt at
    a time; ``stops_at`` that a row ends after so many tokens.
    """

    name: str
    can: frozenset[str]
    draws: bool
    follows_greedy: bool
    alone: bool
    stops_at: int | None

    def run(self, case: Case, *, limited: bool, rows: list[int] | None = None) -> list[Row]:
        """Answer the case's prompts (or some of them); without ``limited`` as if budgetctl were not there."""
        ...
