"""Cases by modes: what the controller promises, in every way of decoding."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from budgetctl.errors import BudgetError
from tests.conformance.cases import CASES, ROWS, Case
from tests.conformance.engine import ENGINES, GREEDY, Engine, Transformers, compiled
from tests.conformance.promises import allowed, check

CELLS = [pytest.param(case, engine, id=f"{case.name}-{engine.name}") for engine in ENGINES for case in CASES]


@cache
def greedy(name: str) -> list[list[int]]:
    """What greedy decoding writes in the case of this name."""
    case = next(case for case in CASES if case.name == name)
    return [row.new_ids for row in GREEDY.run(case, limited=True)]


@pytest.mark.parametrize(("case", "engine"), CELLS)
def test_promises(case: Case, engine: Engine, count: Any, conformance: Any) -> None:
    if not case.needs <= engine.can:
        conformance.skip(case.name, engine.name, "takes no processor of a grammar")
        return
    found = engine.run(case, limited=True)
    free = engine.run(case, limited=False)
    assert len(found) == len(free) >= ROWS
    bitten = 0
    for row, alone in zip(found, free, strict=True):
        check(case, row, alone, engine.stops_at or case.max_new_tokens, count)
        cap, prompt = allowed(case, row.prompt), case.prompts()[row.prompt]
        used = count(prompt + alone.new_ids, len(prompt), case.delimiters).used
        bitten += cap is not None and used > cap
    assert bitten >= case.bites, "no thought would have broken its limit: the case shows nothing here"
    if engine.follows_greedy:
        assert [row.new_ids for row in found] == greedy(case.name)
    conformance.passed(case.name, engine.name, len(found))


@pytest.mark.parametrize(
    "engine", [e for e in ENGINES if not e.draws and not e.alone], ids=lambda engine: engine.name
)
@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.name in ("mixed budgets", "efforts", "close of several tokens")],
    ids=lambda case: case.name,
)
def test_a_row_alone_and_in_a_batch(case: Case, engine: Engine) -> None:
    """Where rows share no noise."""
    together = engine.run(case, limited=True)
    alone = [row for at in range(ROWS) for row in engine.run(case, limited=True, rows=[at])]
    assert [row.new_ids for row in together] == [row.new_ids for row in alone]


def test_a_forward_pass_compiled_for_real() -> None:
    torch._dynamo.utils.counters.clear()
    real = Transformers("static cache, inductor", lambda width: compiled("inductor"))
    case = next(case for case in CASES if case.name == "mixed budgets")
    assert [row.new_ids for row in real.run(case, limited=True)] == greedy(case.name)
    assert torch._dynamo.utils.counters["inductor"], "nothing was compiled"


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
@pytest.mark.parametrize("value", [-1, 2.5, "many"])
def test_a_budget_that_is_none_is_refused(engine: Engine, value: Any) -> None:
    with pytest.raises(BudgetError, match="thinking_budget") as caught:
        engine.run(Case("refused", knobs={"thinking_budget": value}), limited=True)
    assert "\n" not in str(caught.value)


def test_the_committed_table_has_these_cases_and_modes() -> None:
    text = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    header = next(line for line in text.splitlines() if line.startswith("| case"))
    assert [cell.strip() for cell in header.split("|")[2:-1]] == [engine.name for engine in ENGINES]
    assert rows[2:] == [case.name for case in CASES]
