"""budgetctl's knobs for a batch whose rows may have their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from budgetctl.errors import EvalError
from budgetctl.integrations.batching_support import REQUEST_KNOBS
from budgetctl.integrations.transformers import KNOBS

#: Those of which each row may have its own.
ROW_KNOBS = (*REQUEST_KNOBS, "plan")


def knobs_of_rows(knobs: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None, rows: int) -> dict[str, Any]:
    """The knobs of one call: a value that all rows share, or a list with one a row; {} for none.

    Args:
        knobs: one mapping for all rows, or one for each; what is left out has its default.
        rows: of the batch.

    Raises:
        EvalError: an unknown knob, not one mapping a row, or rows that differ in a knob that a call has once.
    """
    if knobs is None:
        return {}
    if isinstance(knobs, Mapping):
        _check(knobs)
        return {name: value for name, value in knobs.items() if value is not None}
    if len(knobs) != rows:
        raise EvalError(
            f"knobs of {len(knobs)} rows for {rows} prompts: expected one mapping a prompt; give as many"
        )
    names = sorted({name for row in knobs for name in row})
    _check(names)
    asked: dict[str, Any] = {}
    for name in names:
        values = [row.get(name, KNOBS[name]) for row in knobs]
        if all(value == values[0] for value in values):
            if values[0] is not None:
                asked[name] = values[0]
        elif name in ROW_KNOBS:
            asked[name] = values
        else:
            raise EvalError(
                f"{name} differs from row to row: expected one value for all, as of all knobs but {', '.join(ROW_KNOBS)}; "
                "ask in several calls"
            )
    return asked


def _check(names: Mapping[str, Any] | Sequence[str]) -> None:
    unknown = sorted(set(names) - set(KNOBS))
    if unknown:
        raise EvalError(f"unknown knob {unknown[0]!r}: expected one of {', '.join(KNOBS)}; correct the name")
