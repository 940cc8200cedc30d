"""A built file is whole or not there, and an interrupted build ends with the same file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from budgetctl.errors import InputFileError
from budgetctl.training.row_file import build_row_file

PARTS = [3, 0, 2, 4]


class Maker:
    """Rows of a part; stops once at the given part."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop
        self.made: list[int] = []

    def __call__(self, part: int) -> list[dict[str, Any]]:
        if len(self.made) == self.stop:
            raise KeyboardInterrupt
        self.made.append(part)
        return [{"part": part, "number": number, "text": "é"} for number in range(part)]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_stand_in_order_and_nothing_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    assert build_row_file(path, {"seed": 1}, PARTS, Maker()) == 9
    assert rows(path) == [{"part": p, "number": n, "text": "é"} for p in PARTS for n in range(p)]
    assert {file.name for file in path.parent.iterdir()} == {"rows.jsonl", "rows.jsonl.settings.json"}


@pytest.mark.parametrize("stop", [0, 1, 2, 3])
@pytest.mark.parametrize("torn", [False, True])
def test_an_interrupted_build_goes_on(tmp_path: Path, stop: int, torn: bool) -> None:
    build_row_file(tmp_path / "whole.jsonl", {"seed": 1}, PARTS, Maker())
    path = tmp_path / "rows.jsonl"
    with pytest.raises(KeyboardInterrupt):
        build_row_file(path, {"seed": 1}, PARTS, Maker(stop))
    assert not path.exists()
    partial = tmp_path / "rows.jsonl.partial"
    if torn:  # stopped in the middle of a part
        with partial.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"row": {"part": "half"}}) + '\n{"row": {"pa')
    maker = Maker()
    assert build_row_file(path, {"seed": 1}, PARTS, maker) == 9
    assert maker.made == PARTS[stop:]
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not partial.exists()


def test_a_finished_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    build_row_file(path, {"seed": 1}, PARTS, Maker())
    again = Maker()
    assert build_row_file(path, {"seed": 1}, PARTS, again) == 9
    assert again.made == []


def test_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with pytest.raises(KeyboardInterrupt):
        build_row_file(path, {"seed": 1}, PARTS, Maker(2))
    with pytest.raises(InputFileError, match=r"partial was made with seed=1: expected 2"):
        build_row_file(path, {"seed": 2}, PARTS, Maker())
    build_row_file(path, {"seed": 1}, PARTS, Maker())
    with pytest.raises(InputFileError, match=r"rows.jsonl was made with parts=4: expected 1"):
        build_row_file(path, {"seed": 1}, [1], Maker())
    path.with_name("rows.jsonl.settings.json").unlink()
    with pytest.raises(InputFileError, match="expected the settings of the file beside it"):
        build_row_file(path, {"seed": 1}, PARTS, Maker())
    other = tmp_path / "other.jsonl"
    other.with_name("other.jsonl.partial").write_text("{}\n")
    with pytest.raises(InputFileError, match="does not begin with settings"):
        build_row_file(other, {}, PARTS, Maker())
