"""The tables of the kernels: what they compare with, and that they are made."""

from __future__ import annotations

import math
import os

import pytest
import torch
from typer.testing import CliRunner

from budgetctl.evals import kernel_tables
from budgetctl.evals.kernel_tables import LOG_PROBS, SHAPES, app, exact_log_cdf, grid, sweep


def test_the_grid_reaches_from_end_to_end() -> None:
    shape, z = grid()
    assert shape.unique().tolist() == list(SHAPES)
    # Shapes of 2 and more have numbers for all of it; those below are left out where z underflows.
    for a in SHAPES[5:]:
        assert int((shape == a).sum()) == len(LOG_PROBS)
    chosen = (shape == 2.0) | (shape == 1e4)
    found = exact_log_cdf(shape[chosen], z[chosen])
    torch.testing.assert_close(found, torch.tensor(LOG_PROBS * 2).double(), rtol=1e-6, atol=1e-12)


def test_the_exact_value_is_the_exponential_distribution_at_shape_one() -> None:
    z = torch.tensor([1e-300, 1e-3, 1.0, 30.0], dtype=torch.float64)
    expected = [math.log(-math.expm1(-x)) for x in z.tolist()]
    assert exact_log_cdf(torch.ones(4), z).tolist() == pytest.approx(expected, rel=1e-14)


def test_the_sweep_is_random_and_in_range() -> None:
    shape, z = sweep(200)
    assert 100 < len(shape) <= 200
    assert float(shape.min()) >= 1e-3
    assert float(shape.max()) <= 1e4
    assert float(exact_log_cdf(shape[:40], z[:40]).min()) < -1
    assert torch.equal(sweep(200)[1], z)
    assert not torch.equal(sweep(200, seed=1)[0][:50], shape[:50])


@pytest.mark.slow
def test_accuracy_is_as_published() -> None:
    """docs/kernels.md: in float64 at most 2e-9, with a gradient 1e-10."""
    result = CliRunner().invoke(app, ["accuracy", "--points", "200"])
    assert result.exit_code == 0, result.output
    rows = [line.split("|") for line in result.output.splitlines()[2:]]
    assert len(rows) >= 4
    for row in rows:
        limit = {"PyTorch": 2e-9, "PyTorch, with gradient": 1e-10}.get(row[1].strip())
        if limit is not None:
            assert max(float(cell.split()[0]) for cell in row[4:-1]) < limit


def test_recovery_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_tables, "RECOVERED", ((8, 96),))
    result = CliRunner().invoke(app, ["recovery", "--batches", "1,2", "--seconds", "0.01"])
    assert result.exit_code == 0, result.output
    assert [line.split("|")[4].strip() for line in result.output.splitlines()[2:]] == ["1", "2"]


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton interprets in this process")
def test_resources_and_roofline_are_made() -> None:
    pytest.importorskip("triton", reason="needs Triton: budgetctl[gpu]")
    for command, lines in (("resources", 8), ("roofline", 16)):
        result = CliRunner().invoke(app, [command])
        assert result.exit_code == 0, result.output
        assert len(result.output.splitlines()) == 2 + lines
