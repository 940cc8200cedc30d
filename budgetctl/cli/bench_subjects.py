"""What the commands of ``budgetctl bench`` are timed on, and the options that say so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from budgetctl.errors import BudgetctlError

Shape = Annotated[
    list[str] | None,
    typer.Option(help="Model of these shapes with random weights: qwen3-0.6b, qwen3-1.7b, qwen3-8b."),
]
Reasoner = Annotated[bool, typer.Option(help="The embedded reasoner.")]
AlsoModel = Annotated[
    str | None, typer.Option(help="Also a model by directory or hub id.", show_default=False)
]
GgufFile = Annotated[
    str | None, typer.Option(help="File of the model to load, where it is GGUF.", show_default=False)
]
Threads = Annotated[int | None, typer.Option(help="CPU threads.", min=1, show_default="all")]


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


def check_gguf(model: str | None, gguf_file: str | None) -> None:
    """Raise :class:`BudgetctlError` for a file without the model that it is of."""
    if gguf_file is not None and model is None:
        raise BudgetctlError("--gguf-file without --model: expected the directory that holds it; add --model")


def check_shapes(names: Sequence[str] | None) -> None:
    """Raise :class:`BudgetctlError` for shapes that are not known."""
    from budgetctl.evals.guidance_subjects import SHAPES

    for name in names or []:
        if name not in SHAPES:
            raise BudgetctlError(f"--shape {name!r}: expected one of {', '.join(SHAPES)}")


def place_of(device: str | None, threads: int | None) -> tuple[Any, Any]:
    """The device, and the dtype of the models there; sets the CPU threads where they are given.

    Raises:
        BudgetctlError: for a device that cannot be used.
    """
    import torch

    from budgetctl.cli import load

    place = load.choose_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    return place, torch.bfloat16 if place.type == "cuda" else torch.float32


def name_of(place: Any) -> str:
    """The device in a report."""
    import torch

    return torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu"


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
