"""A calculator for agents: arithmetic read as a syntax tree, and nothing else evaluated."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from budgetctl.errors import BudgetctlError

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
#: Longer expressions, and results beyond this, are refused: they would take time and memory without an end.
MOST_CHARACTERS, MOST_DIGITS = 500, 300


class CalculatorError(BudgetctlError):
    """An expression that is no arithmetic, or that has no result."""


def calculate(expression: str) -> str:
    """The value of an arithmetic expression: numbers, brackets, and + - * / // % **.

    Raises:
        CalculatorError: for anything else, a division by zero, or a number of more than ``MOST_DIGITS`` digits.
    """
    if len(expression) > MOST_CHARACTERS:
        raise CalculatorError(
            f"an expression of {len(expression)} characters: expected at most {MOST_CHARACTERS}; shorten it"
        )
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except ZeroDivisionError:
        raise CalculatorError(f"{expression!r} divides by zero: correct it") from None
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        raise CalculatorError(
            f"{expression!r}: expected arithmetic, such as (3 + 4) * 2; correct it"
        ) from None
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _value(node: ast.AST) -> int | float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _bounded(node.value)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _bounded(_OPERATORS[type(node.op)](_value(node.operand)))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow) and abs(right) * max(math.log10(abs(left) or 1), 1) > MOST_DIGITS:
            raise ValueError("a power that is too large")
        return _bounded(_OPERATORS[type(node.op)](left, right))
    raise ValueError("no arithmetic")


def _bounded(value: Any) -> int | float:
    if isinstance(value, complex) or not math.isfinite(value) or abs(value) >= 10**MOST_DIGITS:
        raise ValueError("no number, or one that is too large")
    found: int | float = value
    return found
