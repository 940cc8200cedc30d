"""What the commands of ``budgetctl bench`` are timed on, and their lists of numbers."""

from __future__ import annotations

from pathlib import Path
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


def check_model(path: str, gguf_file: str | None) -> None:
    """Raise :class:`BudgetctlError` where a path names nothing."""
    if not Path(path).is_dir() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise BudgetctlError(f"no model at {path!r}: expected a directory or a hub id; correct --model")
    if gguf_file is not None and Path(path).is_dir() and not (Path(path) / gguf_file).is_file():
        raise BudgetctlError(f"no {gguf_file!r} in {path}: expected a GGUF file; correct --gguf-file")


def model_from(path: str, gguf_file: str | None, place: Any, dtype: Any) -> Any:
    """A model by directory or hub id.

    Raises:
        BudgetctlError: for one that cannot be loaded.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    more = {} if gguf_file is None else {"gguf_file": gguf_file}
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **more).to(place).eval()
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise BudgetctlError(
            f"model {path!r} cannot be loaded ({' '.join(str(error).split())}): expected a directory or hub id of a "
            "causal language model; correct --model or --gguf-file"
        ) from error
