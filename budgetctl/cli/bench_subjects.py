"""What the commands of ``budgetctl bench`` are timed on, and their lists of numbers."""

from __future__ import annotations

from typing import Any

from budgetctl.errors import BudgetctlError


def numbers(name: str, text: str) -> list[int]:
    """Whole numbers >= 1 of an option, separated by commas.

    Raises:
        BudgetctlError: for anything else.
    """
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise BudgetctlError(f"{name} {text!r}: expected whole numbers >= 1, separated by commas")
    return found


def reasoner_model(place: Any, dtype: Any) -> Any:
    """The embedded reasoner."""
    from budgetctl.reasoner.load import load_reasoner

    return load_reasoner(place, dtype)[0]


def model_from(path: str, gguf_file: str | None, place: Any, dtype: Any) -> Any:
    """A model by directory or hub id."""
    from transformers import AutoModelForCausalLM

    more = {} if gguf_file is None else {"gguf_file": gguf_file}
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **more).to(place).eval()
