"""Numbers that a user gives, checked before anything runs: tokens, strengths, temperatures."""

from __future__ import annotations

from numbers import Integral, Real

from budgetctl.errors import BudgetError
from budgetctl.kernels.row_state import LEAST_TEMPERATURE, MOST_TEMPERATURE

#: Largest number of tokens that int64 holds.
MOST_TOKENS = 2**63 - 1
_SHOWN = 80


def shown(value: object) -> str:
    """``repr`` of a user's value for a message, cut where it is long; Python refuses to write integers of thousands of
    digits at all."""
    try:
        text = repr(value)
    except ValueError:
        return f"{type(value).__name__} of thousands of digits"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def check_tokens(value: object, name: str, advice: str) -> int | None:
    """``value`` as a number of tokens, or None; anything but a non-negative integer of int64 is a BudgetError."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise BudgetError(
            f"{name}={shown(value)} is not a whole number: expected an integer >= 0 (tokens); {advice}"
        )
    if value < 0:
        raise BudgetError(f"{name}={shown(value)} is negative: expected an integer >= 0 (tokens); {advice}")
    if int(value) > MOST_TOKENS:
        raise BudgetError(
            f"{name}={shown(value)} is out of range: expected an integer below 2**63 (tokens); {advice}"
        )
    return int(value)


def check_strength(value: object) -> float:
    """``value`` as a guidance strength; anything but a finite number >= 0 is a BudgetError."""
    number = _finite(value)
    if number is None or number < 0:
        raise BudgetError(f"guidance_strength={shown(value)}: expected a number >= 0; 0 turns steering off")
    return number


def check_temperature(value: object) -> float:
    """``value`` as a sampling temperature; anything but a number within float32's reach is a BudgetError."""
    number = _finite(value)
    if number is None or not LEAST_TEMPERATURE <= number <= MOST_TEMPERATURE:
        raise BudgetError(
            f"temperature={shown(value)}: expected a number > 0, from {LEAST_TEMPERATURE:g} to {MOST_TEMPERATURE:g}; "
            "decode greedily for none"
        )
    return number


def _finite(value: object) -> float | None:
    """The number, None where it is none or not finite as a float."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if abs(number) < float("inf") else None
