"""What is left of an agent's budgets, as a text that it can read: thinking tokens, and calls of tools that have a price.

After Budget Tracker (BATS, arXiv 2511.17006): the text stands after every result of a tool, names what each budget has
used and has left, and says how to go on by four regimes of the part that is left, HIGH from 70 %, MEDIUM from 30 %, LOW
from 10 %, CRITICAL below or where a budget is spent. One cost unites them: tokens, and calls times price. The wording is
ours. A tracker is a value: spending gives a new one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Real

from budgetctl.budget import check_tokens
from budgetctl.checks import shown
from budgetctl.errors import BudgetError

#: Least part of a budget that is left in each regime, and what the text advises.
REGIMES = (
    ("HIGH", 0.7, "There is room to explore: compare several ways."),
    ("MEDIUM", 0.3, "Go on with the most promising way."),
    ("LOW", 0.1, "Only take steps that the answer needs."),
    ("CRITICAL", 0.0, "Answer now with what is known."),
)


@dataclass(frozen=True)
class ToolBudget:
    """Calls of one tool: how many are allowed and made, and what one costs in tokens.

    Raises:
        BudgetError: for numbers that are negative or none.
    """

    calls: int
    price: float = 0.0
    used: int = 0

    def __post_init__(self) -> None:
        check_tokens(self.calls, "calls", "0 forbids the tool")
        check_tokens(self.used, "used", "leave it out for none")
        number = isinstance(self.price, Real) and not isinstance(self.price, bool)
        if not number or not 0 <= self.price < math.inf:
            raise BudgetError(f"price={self.price!r} of a tool: expected tokens >= 0; 0 for one that is free")

    @property
    def left(self) -> int:
        """Calls that are left."""
        return max(self.calls - self.used, 0)


@dataclass(frozen=True)
class BudgetTracker:
    """Budgets of one agent.

    Args:
        tokens: thinking tokens that it may use.
        used: of these.
        tools: budgets by the tool's name.

    Raises:
        BudgetError: for numbers that are negative or none.
    """

    tokens: int
    used: int = 0
    tools: Mapping[str, ToolBudget] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("tokens", "used"):
            if check_tokens(getattr(self, name), name, "give tokens") is None:
                raise BudgetError(f"{name}=None: expected an integer >= 0 (tokens); give it")

    @classmethod
    def of(cls, value: object) -> BudgetTracker:
        """A tracker from its fields by name, and its tools from theirs.

        Raises:
            BudgetError: for anything else.
        """
        if isinstance(value, BudgetTracker):
            return value
        try:
            fields = dict(value)  # type: ignore[call-overload]
            tools = {
                str(name): tool if isinstance(tool, ToolBudget) else ToolBudget(**tool)
                for name, tool in dict(fields.pop("tools", {})).items()
            }
            return cls(tools=tools, **fields)
        except (TypeError, ValueError) as error:
            if isinstance(error, BudgetError):
                raise
            raise BudgetError(
                f"a tracker of {shown(value)}: expected tokens, perhaps used, and tools with calls, price and used; correct it"
            ) from None

    @property
    def left(self) -> int:
        """Thinking tokens that are left."""
        return max(self.tokens - self.used, 0)

    @property
    def cost(self) -> float:
        """Tokens used, and all calls at their prices."""
        return self.used + math.fsum(tool.used * tool.price for tool in self.tools.values())

    @property
    def regime(self) -> str:
        """HIGH, MEDIUM, LOW or CRITICAL, by the budget of which the smallest part is left."""
        parts = [self.left / self.tokens if self.tokens else 0.0]
        parts += [tool.left / tool.calls if tool.calls else 0.0 for tool in self.tools.values()]
        return regime_of(min(parts))

    def think(self, tokens: int) -> BudgetTracker:
        """After so many more thinking tokens.

        Raises:
            BudgetError: for a negative number.
        """
        return replace(self, used=self.used + (check_tokens(tokens, "tokens", "give tokens") or 0))

    def call(self, name: str) -> BudgetTracker:
        """After one more call of a tool.

        Raises:
            BudgetError: for an unknown tool, or one that has no call left.
        """
        tool = self.tools.get(name)
        if tool is None or not tool.left:
            came = "unknown" if tool is None else f"spent after {tool.used} calls"
            raise BudgetError(
                f"tool {name!r} is {came}: expected one of {self.callable_tools()}; call one of these"
            )
        return replace(self, tools={**self.tools, name: replace(tool, used=tool.used + 1)})

    def callable_tools(self) -> list[str]:
        """Names of the tools that have calls left."""
        return [name for name, tool in self.tools.items() if tool.left]

    def text(self) -> str:
        """The block for the agent's context."""
        lines = [f"Thinking tokens: {self.used} used, {self.left} left"]
        lines += [f"{name}: {tool.used} calls used, {tool.left} left" for name, tool in self.tools.items()]
        spent = [name for name, tool in self.tools.items() if not tool.left]
        regime = self.regime
        advice = next(text for name, _, text in REGIMES if name == regime)
        if spent:
            lines.append(f"No more calls of: {', '.join(spent)}.")
        return "\n".join(["<budget>", *lines, f"{regime}: {advice}", "</budget>"])


def regime_of(part: float) -> str:
    """The regime in which this part of a budget is left; CRITICAL where nothing is."""
    return next(name for name, least, _ in REGIMES if part >= least)
