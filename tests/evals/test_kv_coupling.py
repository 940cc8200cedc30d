"""The table of the coupling: each case beside the full cache of its effort, and a pool in the bytes it was given."""

from __future__ import annotations

from pathlib import Path

import pytest

import budgetctl
from budgetctl.evals.kv_coupling import Answered, answer, cases, kept, pool_bytes, table
from budgetctl.integrations.transformers import Installation
from budgetctl.reasoner.load import PREDICTOR, load_reasoner
from budgetctl.reasoner.tasks import take_questions


@pytest.fixture(scope="module")
def installation() -> Installation:
    model, tokenizer = load_reasoner()
    return budgetctl.install(model, tokenizer, predictor=str(PREDICTOR))


def test_what_fits_is_answered_as_with_a_full_cache(installation: Installation) -> None:
    asked = take_questions("test", 4)
    full = answer(installation, asked, max_new_tokens=120)
    for options in ({"coupled": False}, {}, {"pool": True}):
        assert answer(installation, asked, slots=400, max_new_tokens=120, **options) == full
    assert all(each.closed and each.tokens > each.thinking_tokens for each in full)


def test_a_pool_keeps_to_the_bytes_of_as_many_slots(installation: Installation) -> None:
    asked = take_questions("test", 6)
    few = answer(installation, asked, slots=40, pool=True, max_new_tokens=60)
    assert len(few) == 6
    cache = installation.cache
    assert cache.bytes_allocated <= pool_bytes(installation.model, 40, 6)
    assert 0 < sum(cache.row_capacities) <= 6 * 40
    assert len(set(cache.row_capacities)) > 1


def test_each_line_is_beside_the_full_cache_of_its_effort() -> None:
    names = cases([64], [2.0], ["low"])
    assert list(names) == [
        "full",
        "64, uncoupled",
        "64, each",
        "64, pool",
        "64, pool, kv_max_loss=2",
        "full, effort low",
        "64, each, effort low",
        "64, pool, effort low",
    ]
    right, wrong = Answered(True, 10, 14, True), Answered(False, 30, 34, False)
    records = {name: [right, wrong] for name in names}
    records["64, pool, effort low"] = [wrong, wrong]
    lines = table(records)
    assert len(lines) == 2 + len(names)
    assert lines[-1].split("|")[3].strip().startswith("-0.500")
    assert lines[-2].split("|")[3].strip() == "0.000 [0.000, 0.000]"
    assert lines[-1].split("|")[4:6] == [" 30.0 ", " 0.000 "]


def test_a_run_goes_on_with_what_is_there(tmp_path: Path) -> None:
    found = [Answered(True, 10, 14, True), Answered(False, 30, 34, False)]
    path = tmp_path / "64, pool of 2.jsonl"
    assert kept(path, lambda: found) == found
    assert kept(path, lambda: []) == found
