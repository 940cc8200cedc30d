"""What a KV budget costs in quality, teacher-forced: ``python -m budgetctl.evals.kv_quality``.

Texts of equal length pass token by token through a :class:`~budgetctl.kv.BudgetCache` of each policy and capacity, and,
where kvpress is installed, through its ``DecodingPress`` at the same peak of slots. Reported are nats a token more than
with the full cache and the share of equal top-1 tokens, counted where something may have been evicted before. Writes one
file of readings for each cell, ``summary.json``, ``table.md`` and ``quality.png`` to ``--out``; an interrupted run goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from transformers import DynamicCache, PreTrainedModel

from budgetctl.errors import BudgetctlError
from budgetctl.evals.kv_presses import PRESSES, available, pressed
from budgetctl.evals.kv_quality_report import draw, markdown, show, summarise
from budgetctl.evals.kv_teacher import Reading, read_forced, stacked
from budgetctl.evals.kv_texts import kept_texts, load_subject, make_texts
from budgetctl.evals.kv_variants import parse_variant
from budgetctl.evals.output import progress_bar, write_jsonl, write_text
from budgetctl.kv import POLICIES, BudgetCache


@dataclass(frozen=True)
class Cell:
    """One line of the table: whose ``name``, from ``source``, with ``capacity`` slots a head."""

    source: str
    name: str
    capacity: int

    @property
    def file(self) -> str:
        name = "".join(c if c.isalnum() or c in "-.=" else "_" for c in self.name)
        return f"{self.source}-{name}-{self.capacity}.jsonl"


def read_cell(model: PreTrainedModel, ids: torch.Tensor, cell: Cell, prompt: int) -> Reading:
    """Texts [B, n] under the cache of a cell.

    Raises:
        BudgetctlError: when more slots were held than the cell allows.
    """
    if cell.source == "kvpress":
        with pressed(model, cell.name, cell.capacity, prompt):
            found = read_forced(model, ids, DynamicCache(config=model.config), prompt)
    elif cell.source == "full":
        model.set_attn_implementation("sdpa")
        found = read_forced(model, ids, DynamicCache(config=model.config), prompt)
    else:
        policy, options = parse_variant(cell.name)
        model.set_attn_implementation("budget_kv")
        found = read_forced(model, ids, BudgetCache(model.config, cell.capacity, policy, **options), prompt)
    if found.peak > cell.capacity:
        raise BudgetctlError(f"{cell.name} held {found.peak} slots: expected {cell.capacity} at most")
    return found


def kept_reading(path: Path, make: Callable[[], Reading]) -> Reading:
    """The reading of an earlier run at ``path``; made now, and written whole, when there is none."""
    if not path.exists():
        found = make()
        by_text = zip(found.nll.round(6).tolist(), found.likeliest.tolist(), strict=True)
        write_jsonl(path, ({"peak": found.peak, "nll": nll, "likeliest": top} for nll, top in by_text))
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return Reading(
        np.array([row["nll"] for row in rows]),
        np.array([row["likeliest"] for row in rows]),
        max(row["peak"] for row in rows),
    )


def plan(length: int, shares: str, policies: str, presses: str) -> list[Cell]:
    """Cells of shares of ``length`` by commas, policies by semicolons and presses by commas; the full cache first.

    Raises:
        BudgetctlError: for a share that is none.
    """
    cells = [Cell("full", "full cache", length)]
    for share in map(float, shares.split(",")):
        if not 0 < share <= 1:
            raise BudgetctlError(f"a share of {share}: expected above 0 and at most 1")
        capacity = round(share * length)
        cells += [Cell("budgetctl", name, capacity) for name in policies.split(";") if name]
        # Where nothing is to be cut there is nothing to compare.
        cells += [Cell("kvpress", name, capacity) for name in presses.split(",") if name and share < 1]
    return cells


def main(
    model: Annotated[str | None, typer.Option(help="directory or hub id; SmolLM2-135M when left out")] = None,
    gguf_file: Annotated[str | None, typer.Option(help="name of a GGUF file in the directory")] = None,
    split: Annotated[str, typer.Option(help="dev or held-out")] = "held-out",
    each: Annotated[int, typer.Option(min=1, help="texts of each of the three kinds")] = 4,
    length: Annotated[int, typer.Option(min=16, help="tokens of a text")] = 384,
    prompt: Annotated[int, typer.Option(min=1, help="tokens of it that are read in one piece")] = 32,
    shares: Annotated[
        str, typer.Option(help="capacities as shares of the length, by commas")
    ] = "0.125,0.25,0.5,0.75,1",
    policies: Annotated[
        str, typer.Option(help="by semicolons; with options as in decayed-max:decay=0.95,recent=16")
    ] = ";".join(POLICIES),
    presses: Annotated[str, typer.Option(help="scorers of kvpress, by commas; empty for none")] = ",".join(
        PRESSES
    ),
    batch: Annotated[int, typer.Option(min=1, help="texts at a time")] = 16,
    out: Annotated[Path, typer.Option(help="folder")] = Path("runs/kv-quality"),
    as_json: Annotated[bool, typer.Option("--json", help="the summary on stdout")] = False,
) -> None:
    """Read every text under every cache, and compare."""
    console = Console(stderr=True)
    if presses and not available():
        console.print(
            "kvpress is not installed: its columns are left out (pip install --no-deps kvpress cachetools)"
        )
        presses = ""
    cells = plan(length, shares, policies, presses)
    folder = out / f"{split}-{each}x{length}-{prompt}"
    loaded, tokenizer = load_subject(model, gguf_file)
    texts = kept_texts(
        folder / "texts.jsonl", lambda: make_texts(loaded, tokenizer, split, each=each, length=length)
    )
    ids = torch.tensor([text.ids for text in texts])
    readings: dict[Cell, Reading] = {}
    with progress_bar(console) as progress:
        task = progress.add_task("reading", total=len(cells))
        for cell in cells:

            def read(cell: Cell = cell) -> Reading:
                return stacked([read_cell(loaded, part, cell, prompt) for part in ids.split(batch)])

            readings[cell] = kept_reading(folder / cell.file, read)
            progress.advance(task)
    rows: list[dict[str, Any]] = summarise(readings, length, prompt)
    write_text(folder / "summary.json", json.dumps(rows, indent=1) + "\n")
    write_text(folder / "table.md", markdown(rows) + "\n")
    draw(rows, folder / "quality.png")
    if as_json:
        Console().print(json.dumps(rows), markup=False, highlight=False, soft_wrap=True)
    else:
        show(rows, Console())


if __name__ == "__main__":
    typer.run(main)
