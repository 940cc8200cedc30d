"""Ending a thought early because its answer is already there: the model is asked for it at the ends of steps.

Two published tests. ``confidence``: the trial answer's tokens have a high geometric mean of probabilities (DEER, arXiv
2504.15895). ``agreement``: the last few trial answers are the same (Dynasor, Certaindex, arXiv 2412.20993).

It is not free. A probe re-reads the whole prefix, since it shares no key-value cache with the generation, and generates up
to ``probe_tokens`` tokens; and a host sync a step is inherent, because the host decides whether the model is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from budgetctl.checks import MOST_TOKENS, shown
from budgetctl.errors import BudgetError

METHODS = ("confidence", "agreement")
#: DEER's threshold, and Dynasor's middle setting.
THRESHOLD, WINDOW = 0.95, 3


@dataclass(frozen=True)
class EarlyExit:
    """When a thought may end early.

    Args:
        method: ``confidence`` or ``agreement``.
        threshold: of ``confidence``, in (0, 1]: the least geometric mean of the answer's token probabilities; 0.95 by
            default.
        window: of ``agreement``, how many probes in a row must give the same answer; 3 by default.
        every: probe at each ``"line"`` end, or every so many thinking tokens.
        turn: probe only at the ends of lines in which this text was written, such as "Wait", with which many models begin
            to check or start anew. DEER probes at such turns, though before the text, which is not known in advance.
        answer_prompt: text after the close that makes the model answer at once. A brace that it opens ends the answer
            where it is closed.
        probe_tokens: most tokens of a trial answer.

    Raises:
        BudgetError: for a value that makes no sense, or one that belongs to the other method.
    """

    method: str = "confidence"
    threshold: float | None = None
    window: int | None = None
    every: str | int = "line"
    turn: str | None = None
    answer_prompt: str = "\n\n**Final Answer**\n\\boxed{"
    probe_tokens: int = 20

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise BudgetError(
                f"early_exit method {shown(self.method)}: expected 'confidence' or 'agreement'; or leave it unset"
            )
        for name, owner in (("threshold", "confidence"), ("window", "agreement")):
            value = getattr(self, name)
            if value is not None and self.method != owner:
                raise BudgetError(
                    f"early_exit {name}={shown(value)} with method {self.method!r}: expected {name} only for {owner!r}; "
                    "drop it or change the method"
                )
        if self.threshold is not None and not (_is_number(self.threshold) and 0 < self.threshold <= 1):
            raise BudgetError(
                f"early_exit threshold={shown(self.threshold)}: expected a number in (0, 1]; lower exits earlier"
            )
        if self.turn is not None and (
            not isinstance(self.turn, str) or not self.turn or self.every != "line"
        ):
            raise BudgetError(
                f"early_exit turn={shown(self.turn)} with every={shown(self.every)}: expected a text, and every='line'; "
                "drop one of the two"
            )
        if self.every != "line":
            _check_count("every", self.every, 1, "'line' or a whole number of tokens >= 1")
        if self.window is not None:
            _check_count("window", self.window, 2, "a whole number of probes >= 2")
        _check_count("probe_tokens", self.probe_tokens, 1, "a whole number of tokens >= 1")
        if not isinstance(self.answer_prompt, str):
            raise BudgetError(
                f"early_exit answer_prompt={shown(self.answer_prompt)}: expected a text, '' for none; correct it"
            )

    @property
    def points(self) -> int:
        """Probes that one decision is made of."""
        return 1 if self.method == "confidence" else self.window or WINDOW

    @classmethod
    def of(cls, value: object) -> EarlyExit | None:
        """From the knob's value: None, a method, a mapping of the fields, or a config.

        Raises:
            BudgetError: for anything else.
        """
        if value is None or isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls(method=value)
        if not isinstance(value, Mapping):
            raise BudgetError(
                f"early_exit={shown(value)}: expected 'confidence', 'agreement' or a dict of EarlyExit's fields; "
                "leave it unset for none"
            )
        names = [field.name for field in fields(cls)]
        unknown = [name for name in value if name not in names]
        if unknown:
            raise BudgetError(
                f"early_exit has no field {shown(unknown[0])}: expected {', '.join(names)}; correct the name"
            )
        return cls(**value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_count(name: str, value: object, least: int, expected: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST_TOKENS:
        raise BudgetError(f"early_exit {name}={shown(value)}: expected {expected}, below 2**63; correct it")
