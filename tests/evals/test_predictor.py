"""Table and figure of the length predictor's evaluation."""

from __future__ import annotations

from pathlib import Path

from budgetctl.evals import predictor


def test_table_and_plot_of_the_predictor(tmp_path: Path) -> None:
    measures = {"nll": 1.0, "mae": 0.5, "nll_first": 1.25, "mae_first": 0.75}
    summary = {
        "measures": {
            "constant": {**measures, "parameters": 2},
            "candidate": {**measures, "parameters": 26_000},
        },
        "pit_histogram": [0.1] * 10,
        "coverage_n": 500,
        "coverage": {"first thinking token": {0.8: 0.81, "0.9": 0.905}},
    }
    lines = predictor.table(summary).splitlines()
    assert lines[2] == "| constant | 2 | 1.000 | 0.500 | 1.250 | 0.750 |"
    assert lines[3].startswith("| candidate | 26,000 |")
    assert lines[-1].endswith("(first thinking token, n = 500): 80%: 81.0%, 90%: 90.5%")
    path = tmp_path / "new" / "pit.png"
    predictor.draw_pit(summary["pit_histogram"], path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
