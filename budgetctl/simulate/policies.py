"""What a fleet does about long thoughts: nothing, a hard cap, budgetctl's thinking budget, a KV budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from budgetctl.errors import BudgetctlError
from budgetctl.simulate.lengths import Lengths

EXAMPLES = "none, hard-cut:512, budgetctl:512, kv:1024 or budgetctl:512+kv:1024"
_METHODS = ("hard-cut", "budgetctl")


@dataclass(frozen=True)
class Policy:
    """A policy.

    Args:
        name: as it was written.
        method: ``hard-cut`` (the engine's own limit), ``budgetctl``, or None for no thinking budget.
        thinking_budget: tokens; None without one.
        slots: KV budget of a row in tokens; None without one.
    """

    name: str
    method: str | None = None
    thinking_budget: int | None = None
    slots: int | None = None

    @classmethod
    def parse(cls, text: str) -> Policy:
        """From words such as ``budgetctl:512+kv:1024``.

        Raises:
            BudgetctlError: for words that are unknown, or given twice.
        """
        method: str | None = None
        budget: int | None = None
        slots: int | None = None
        for part in text.split("+"):
            word, _, number = part.strip().partition(":")
            if word == "none" and not number and text.strip() == "none":
                continue
            if word not in (*_METHODS, "kv") or not number.isdecimal() or int(number) < 1:
                raise BudgetctlError(f"policy {text!r}: expected one such as {EXAMPLES}; correct {part!r}")
            if (slots if word == "kv" else budget) is not None:
                raise BudgetctlError(
                    f"policy {text!r}: expected one {'KV' if word == 'kv' else 'thinking'} budget; drop {part!r}"
                )
            if word == "kv":
                slots = int(number)
            else:
                method, budget = word, int(number)
        return cls(text.strip(), method, budget, slots)

    def recorded(self, lengths: Lengths) -> bool:
        """Whether the lengths under this budget were recorded, rather than cut from those without one."""
        return self.method is None or (self.method, self.thinking_budget) in lengths.limited

    def apply(self, lengths: Lengths) -> tuple[np.ndarray, np.ndarray]:
        """Thinking and answer tokens [Q] under the policy: as recorded at this budget, else the natural thought up to
        the budget with the natural answer."""
        if self.method is None or self.thinking_budget is None:
            return lengths.thinking, lengths.answer
        found = lengths.limited.get((self.method, self.thinking_budget))
        if found is not None:
            return found
        return np.minimum(lengths.thinking, self.thinking_budget), lengths.answer
