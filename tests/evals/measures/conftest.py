"""A made-up run and its summary."""

from __future__ import annotations

import pytest

from budgetctl.evals.harness.answer import Answer
from budgetctl.evals.measures.shape import Summary
from budgetctl.evals.measures.summary import summarise_run
from tests.evals.measures.fixture import QUICK, synthetic_run


@pytest.fixture(scope="package")
def run() -> list[Answer]:
    return synthetic_run(questions=8)


@pytest.fixture(scope="package")
def summary(run: list[Answer]) -> Summary:
    return summarise_run(run, how=QUICK)
