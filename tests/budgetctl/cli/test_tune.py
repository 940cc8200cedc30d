"""``budgetctl tune``: a small search for real, resumed and told; mistakes told in one line before any model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="needs optuna: pip install 'budgetctl-llm[tune]'")

Run = Callable[..., Any]
SMALL = ("--n", "4", "--max-new-tokens", "64", "--price", "0.002", "--family", "dial")


def test_a_search_goes_on_and_its_flags_are_those_of_generate(run: Run, tmp_path: Path) -> None:
    options = ("tune", *SMALL, "--json", "--out")
    once = run(*options, tmp_path / "a", "--trials", "4", "--png", tmp_path / "a.png", embedded=True)
    assert once.exit_code == 0, once.stderr
    told = json.loads(once.stdout)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    run(*options, tmp_path / "b", "--trials", "2", embedded=True)
    assert json.loads(run(*options, tmp_path / "b", "--trials", "4", embedded=True).stdout) == told
    assert json.loads((tmp_path / "b" / "best.json").read_text()) == told
    assert told["trials"] == 4
    assert {"default", "best on dev"} == set(told["held_out"])
    assert told["held_out"]["default"]["gain"] == [0.0, 0.0, 0.0]
    assert (
        run(
            "generate", "A dial shows 3: turn +4. Where does it stop?", *told["flags"], embedded=True
        ).exit_code
        == 0
    )
    shown = run("tune", *SMALL, "--out", tmp_path / "a", "--trials", "4", embedded=True).stdout
    assert "The best of 4 trials" in shown
    assert "held-out questions, default" in shown


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((), "expected one of the two"),
        (("--price", "1", "--at-most", "5"), "expected one of the two"),
        (("--price", "nan"), "expected one of the two"),
        (("--price", "0", "--max-new-tokens", "8"), "leaves nothing to search"),
        (("--price", "0", "--family", "dice"), "expected one of dial"),
        (("--price", "0", "--questions", "none.jsonl"), "go together"),
        (("--price", "0", "--questions", "none.jsonl", "--held-out", "none.jsonl"), "cannot be read"),
        (("--price", "0", "--png", "x.jpg"), "ends in .png"),
        (("--price", "0", "--trials", "1"), "--trials"),
        (("--price", "0", "--out", __file__), "cannot keep the search"),
    ],
)
def test_mistakes_are_told_before_the_model_is_loaded(
    arguments: tuple[str, ...], match: str, run: Run, no_model: None, tmp_path: Path
) -> None:
    folder = () if "--out" in arguments else ("--out", tmp_path / "run")
    outcome = run("tune", *arguments, *folder, embedded=True)
    assert outcome.exit_code == 2
    assert match in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1
