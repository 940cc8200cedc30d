"""What is counted of an engine's requests is what ``generate`` reports of each."""

from __future__ import annotations

import urllib.error
import urllib.request
from dataclasses import astuple, replace
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetctl.controller import BudgetController
from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.errors import BudgetctlError
from budgetctl.integrations.vllm import counters, processor
from budgetctl.integrations.vllm.counters import PORT_VARIABLE, counters_of_environment, listening
from budgetctl.integrations.vllm.tally import Facts
from budgetctl.telemetry import ThoughtReport, report_sequences
from tests.budgetctl.integrations.vllm.fakes import (
    CONTEXT,
    States,
    Update,
    context_of,
    processor_for,
    sampling,
)
from tests.conformance.strategies import PROFILE, USER, delimiters, limits, logits_of, prompts

LONGEST = 14


class Kept:
    """Counters that keep what they are told."""

    def __init__(self) -> None:
        self.reports: list[ThoughtReport] = []
        self.prompts: list[int] = []

    def note(self, report: ThoughtReport, prompt_tokens: int) -> None:
        self.reports.append(report)
        self.prompts.append(prompt_tokens)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    found = Kept()
    monkeypatch.setattr(processor, "counters_of_environment", lambda engine: (found,))
    return found


def alone_of(d: ThinkingDelimiters, asked: Any, prompt: list[int], model: Any, boundaries: Any) -> Any:
    length = asked["max_new_tokens"] or CONTEXT - len(prompt)
    options = {**asked, "max_new_tokens": length}
    return BudgetController(d, forecast=model, boundaries=boundaries, prompt_length=len(prompt), **options)


def reported(alone: BudgetController, tokens: list[int], prompt: int) -> ThoughtReport:
    (report,) = report_sequences(alone, [tokens], prompt)
    return replace(report, guidance_strength=0.0)


def alike(one: float | None, other: float | None) -> bool:
    return (one is None and other is None) or abs((one or 0) - (other or 0)) <= 1e-5 * abs(other or 0)


@settings(PROFILE, max_examples=10)
@given(data=st.data(), d=delimiters(), seed=st.integers(0, 10_000), steer=st.booleans())
def test_reports_are_those_of_generate(
    data: st.DataObject, d: ThinkingDelimiters, seed: int, steer: bool, forecast: Any, boundaries: Any
) -> None:
    model, found, rng = forecast if steer else None, Kept(), Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processor, "counters_of_environment", lambda engine: (found,))
        engine = processor_for(d, boundaries, model)
    kinds = [data.draw(limits(d, forecast=steer)) | {"max_new_tokens": LONGEST} for _ in range(3)]
    kinds = [k if (k.get("answer_reserve") or 0) < 4 else k | {"answer_reserve": 3} for k in kinds]
    texts = [data.draw(prompts(d)) or [USER] for _ in range(3)]
    generator = torch.Generator().manual_seed(seed)
    rows: list[tuple[list[int], list[int], BudgetController]] = []
    for at, asked in enumerate(kinds):
        rows.append((texts[at], [], alone_of(d, asked, texts[at], model, boundaries)))
        knobs = {name: value for name, value in asked.items() if name != "max_new_tokens"}
        params = sampling(LONGEST, **knobs)
        engine.update_state(Update(at + 1, added=[(at, params, rows[at][0], rows[at][1])]))
    going = set(range(len(rows)))
    for _ in range(LONGEST):
        logits = torch.cat([logits_of(torch.tensor([[*p, *o]]), seed, d) for p, o, _ in rows])
        chosen = torch.multinomial(engine.apply(logits.clone()).softmax(1), 1, generator=generator)[
            :, 0
        ].tolist()
        engine.update_state(None)
        for at in sorted(going):
            prompt, outputs, alone = rows[at]
            alone(torch.tensor([[*prompt, *outputs]]), logits[at : at + 1])
            outputs.append(chosen[at])
            if chosen[at] in d.eos_ids:
                going.discard(at)
        if not going:
            break
        if rng.random() < 0.2:  # told late, as an engine that runs ahead does
            continue
        for at, (_, outputs, _) in enumerate(rows):
            if at not in going:
                outputs.append(5)
    engine.update_state(Update(0, removed=list(range(len(rows)))))
    engine._tally.finish()
    assert len(found.reports) == len(rows)
    for (prompt, outputs, alone), report, size in zip(rows, found.reports, found.prompts, strict=True):
        end = next((n + 1 for n, token in enumerate(outputs) if token in d.eos_ids), len(outputs))
        expected = reported(alone, [*prompt, *outputs[:end]], len(prompt))
        assert astuple(report)[:3] == astuple(expected)[:3]
        assert (report.close, report.leaked) == (expected.close, expected.leaked)
        assert alike(report.predicted_tokens, expected.predicted_tokens)
        assert size == len(prompt)


def test_what_has_not_ended_is_not_counted(kept: Kept, markers: Any, boundaries: Any) -> None:
    """Requests that are sent back, and clients that have gone."""
    d = markers["opened by the template"]
    prompt = [USER, *d.turn_start_ids, *d.open_ids, *d.lead_ids]
    engine = processor_for(d, boundaries, None)
    outputs = [5, 6, *d.forced_end_ids, 6]
    params = sampling(10, thinking_budget=3)
    engine.update_state(Update(1, added=[(0, params, prompt, outputs)]))
    engine.apply(torch.zeros(1, 18))
    engine.update_state(Update(0, removed=[0]))
    engine.update_state(Update(1, added=[(0, params, prompt, outputs)]))
    engine.apply(torch.zeros(1, 18))
    outputs.append(d.eos_ids[0])
    engine.update_state(Update(0, removed=[0]))
    engine._tally.finish()
    (report,) = kept.reports
    assert (report.thinking_tokens, report.answer_tokens, report.thinking_budget) == (2, 1, 3)


def test_the_second_runner_counts_when_a_slot_is_taken_again(
    kept: Kept, markers: Any, boundaries: Any, forecast: Any
) -> None:
    d = markers["opened by the template"]
    prompt = [USER, *d.turn_start_ids, *d.open_ids, *d.lead_ids]
    states = States(2, 64)
    engine = processor_for(d, boundaries, forecast, states)
    asked: list[dict[str, Any]] = [{"thinking_budget": 4}, {"effort": 0.5}]
    alone = [
        BudgetController(
            d, forecast=forecast, boundaries=boundaries, prompt_length=len(prompt), max_new_tokens=12, **knobs
        )
        for knobs in asked
    ]
    rows = [list(prompt), list(prompt)]
    for slot, knobs in enumerate(asked):
        states.prompt_len.np[slot] = len(prompt)
        engine.add_request(slot, sampling(12, **knobs))
    engine.apply_staged_writes()
    for _ in range(12):
        for slot, row in enumerate(rows):
            states.write(slot, row)
        logits = torch.cat([logits_of(torch.tensor([row]), 3, d) for row in rows])
        context = context_of(states, [(slot, row, []) for slot, row in enumerate(rows)])
        scores = engine.apply(logits.clone(), context)
        for slot, row in enumerate(rows):
            alone[slot](torch.tensor([row]), logits[slot : slot + 1])
            row.append(int(scores[slot, 2:17].argmax()) + 2)  # no end of sequence
    for slot, row in enumerate(rows):
        states.write(slot, row)
    engine._tally.finish()
    assert kept.reports == []
    for slot in (1, 0):
        states.prompt_len.np[slot] = 1
        engine.add_request(slot, sampling(12, thinking_budget=4))
        states.write(slot, [USER])  # what was staged comes after
    engine._tally.finish()
    expected = [reported(alone[slot], rows[slot], len(prompt)) for slot in (1, 0)]
    for report, own in zip(kept.reports, expected, strict=True):
        assert astuple(report)[:3] == astuple(own)[:3]
        assert report.close == own.close
        assert own.predicted_tokens is not None
        assert alike(report.predicted_tokens, own.predicted_tokens)


@pytest.mark.parametrize(
    ("new_ids", "expected"),
    [
        ([5, 6, 1, 5], [5, 6, 1]),
        ([5, 6, 9], [5, 6, 9]),
        ([5] * 7, [5] * 6),
        ([5] * 5, None),
        ([5, -1], None),
        ([], None),
    ],
)
def test_the_end_of_a_request(new_ids: list[int], expected: list[int] | None) -> None:
    facts = Facts(None, 10, 6, frozenset({1, 9}))  # type: ignore[arg-type]
    assert facts.ended(new_ids) == expected


def test_a_port_of_the_engine() -> None:
    metrics, port = listening(0)
    metrics.note(ThoughtReport(20, 5, 32, 41.5, "steered", False), 10)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        assert answer.read().decode() == metrics.text()
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30)


@pytest.mark.parametrize(
    ("given", "words"), [("none", "expected the number of a port"), ("taken", "cannot be")]
)
def test_a_port_that_is_none(given: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(counters.FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv(PORT_VARIABLE, str(listening(0)[1]) if given == "taken" else given)
    with pytest.raises(BudgetctlError, match=words):
        counters_of_environment.__wrapped__()
