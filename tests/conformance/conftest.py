"""Collects what the suite has checked; ``--write-conformance`` writes it to docs/conformance.md."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.cases import CASES
from tests.conformance.engine import ENGINES

TABLE = Path(__file__).parents[2] / "docs" / "conformance.md"
HEAD = """# Conformance

What the controller promises, checked in every way of decoding by [`tests/conformance`](../tests/conformance). A cell has the number of sequences that were checked for all of this:

- no thought is over its budget, whatever wrote it: counted from the token ids by a plain loop
- a row that runs to its length has closed its thought, and not inside the answer's reserve
- no close below the minimum; no second close in the answer
- a row without a limit has the tokens that the model writes without budgetctl
- the report has the same count, and names a marker that stands in the answer
- an answer that a grammar binds is of the grammar
- {greedy} write the same tokens as greedy decoding

In every case but those without a cap, the unlimited model breaks the limit at least once, or the cell fails. Rows alone have the tokens that they have in a batch ({batches}). A dash: {skipped}. A budget of -1, a fraction or a word is refused in every mode. One more test compiles the forward pass with inductor.

This table is written by the run itself: `pytest tests/conformance -n 0 --write-conformance`.

"""


class Table:
    """Cells that passed, with the number of sequences, and cells that do not apply."""

    def __init__(self) -> None:
        self.cells: dict[tuple[str, str], str] = {}
        self.reasons: dict[str, None] = {}

    def passed(self, case: str, mode: str, sequences: int) -> None:
        self.cells[case, mode] = str(sequences)

    def skip(self, case: str, mode: str, reason: str) -> None:
        self.cells[case, mode] = "–"  # noqa: RUF001
        self.reasons[f"{mode} {reason}"] = None

    def write(self, path: Path) -> None:
        """Whole or not at all; a cell that did not pass is marked."""
        modes = [engine.name for engine in ENGINES]
        lines = ["| case | " + " | ".join(modes) + " |", "|---" * (len(modes) + 1) + "|"]
        for case in CASES:
            cells = (self.cells.get((case.name, mode), "**failed**") for mode in modes)
            lines.append(f"| {case.name} | " + " | ".join(cells) + " |")
        head = HEAD.format(
            greedy=", ".join(engine.name for engine in ENGINES if engine.follows_greedy),
            batches=", ".join(engine.name for engine in ENGINES if not engine.draws and not engine.alone),
            skipped="; ".join(self.reasons),
        )
        partial = path.with_name(path.name + ".partial")
        partial.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
        os.replace(partial, path)


@pytest.fixture(scope="session")
def conformance(request: pytest.FixtureRequest) -> Iterator[Table]:
    table = Table()
    yield table
    if request.config.getoption("--write-conformance", default=False):
        table.write(TABLE)
