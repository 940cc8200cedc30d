"""What ``budgetctl bench guidance`` times does what it says, and its tables and figure show it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from typer.testing import CliRunner

from budgetctl.cli.app import app
from budgetctl.errors import BudgetctlError
from budgetctl.evals import guidance_sweeps
from budgetctl.evals.dict_budgets import DictBudgets
from budgetctl.evals.guidance_bench import (
    GuidedRows,
    Timing,
    bench,
    guide,
    guide_by_reference,
    median_ms,
    published,
)
from budgetctl.evals.guidance_report import draw, tables
from budgetctl.evals.guidance_subjects import (
    CLOSE,
    OPEN,
    Subject,
    compiled_decode_step,
    decode_step,
    logits_alone,
    model_subject,
    shaped,
)
from budgetctl.evals.published_predictor import PublishedPredictor

METHODS = (
    "hard cut",
    "dict state machine",
    "guidance",
    "guidance, compiled",
    "controller",
    "controller, by lines",
    "published predictor",
)
CPU = torch.device("cpu")
HIDDEN, VOCAB = 8, 96
# BERT-base: width, inner width, layers, positions, token types.
W, F, N, P, T = 768, 3072, 12, 512, 2


@pytest.fixture(scope="module")
def subject() -> Subject:
    return logits_alone(VOCAB, CPU, hidden=HIDDEN)


@pytest.fixture(scope="module")
def tiny() -> Subject:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=256,
    )
    return model_subject(Qwen3ForCausalLM(config).eval(), "tiny")


@pytest.fixture(scope="module")
def predictor() -> PublishedPredictor:
    torch.manual_seed(0)
    return PublishedPredictor(HIDDEN, VOCAB).eval()


def test_parameters_of_the_published_predictor(predictor: PublishedPredictor) -> None:
    norm = 2 * W
    layer = 4 * (W * W + W) + (W * F + F) + (F * W + W) + 2 * norm
    encoder = P * W + T * W + norm + N * layer
    expected = (HIDDEN * W + W) + W + encoder + 2 * W * VOCAB
    assert sum(p.numel() for p in predictor.parameters()) == expected


def test_published_step(predictor: PublishedPredictor) -> None:
    states, scores = torch.randn(2, 5, HIDDEN), torch.randn(2, VOCAB)
    with torch.inference_mode():
        concentration, rate = predictor(states)
        assert concentration.shape == rate.shape == (2, VOCAB)
        assert bool((concentration > 0).all())
        assert bool((rate > 0).all())
        torch.testing.assert_close(predictor(states[:1])[0], concentration[:1], atol=1e-4, rtol=1e-4)
        guided = published(predictor, states, scores, torch.tensor([3, 100]))
    assert guided.shape == scores.shape
    assert bool((guided <= scores).all())


def test_guidance_acts_where_room_is_short_and_keeps_the_close(subject: Subject) -> None:
    scores = subject.logits(3)
    rows = GuidedRows.of(torch.tensor([0, 20, 10**6]))
    guided = guide(subject.forecast, scores, rows, 64)
    torch.testing.assert_close(guided, guide_by_reference(subject.forecast, scores, rows, 64))
    change = (guided - scores).abs()
    assert bool(guided.isfinite().all())
    assert float(change[1].max()) > 0.1 > float(change[2].max())
    assert float(change[:, CLOSE].max()) == 0.0


def test_dictionaries_hold_a_budget() -> None:
    machine = DictBudgets([2, 5, 0], (OPEN,), (7, CLOSE))
    written: list[list[int]] = [[], [], []]
    last = [20, 20, 20]
    for _ in range(9):
        logits = machine.step(last, torch.zeros(3, VOCAB).index_fill(1, torch.tensor([30]), 1.0))
        last = logits.argmax(1).tolist()
        for row, token in enumerate(last):
            written[row].append(token)
    # The first token was given; a row at its budget writes the close.
    assert written[0][:4] == [30, 7, CLOSE, 30]
    assert written[1][:7] == [30, 30, 30, 30, 7, CLOSE, 30]
    assert written[2][:3] == [7, CLOSE, 30]
    assert all(row.count(CLOSE) == 1 for row in written)


def test_rows_begin_with_an_opened_thought_and_grow(subject: Subject) -> None:
    rows = subject.rows(4, 30)
    assert rows.shape == (4, 33)
    assert (rows[:, 2] == OPEN).all()
    assert not torch.isin(rows[:, 3:], torch.tensor([OPEN, CLOSE])).any()


def test_every_method_is_timed(tiny: Subject) -> None:
    found = list(bench(tiny, [2], thinking_tokens=64, steps=24, seconds=0.0))
    assert [(t.method, t.batch) for t in found] == [(method, 2) for method in METHODS]
    assert all(t.ms > 0 and t.step_ms for t in found)
    assert {t.vocab for t in found} == {VOCAB}


def test_one_decode_step_is_the_model_s(tiny: Subject) -> None:
    """Repeated, it is the same step: the cache is cut back."""
    step = decode_step(tiny, 2, 40)
    with torch.inference_mode():
        first, second = step(), step()
        rows = tiny.rows(2, 37)
        again = tiny.model(torch.cat([rows, rows[:, -1:]], 1)).logits[:, -1:]
    assert torch.equal(first, second)
    torch.testing.assert_close(first, again, atol=1e-4, rtol=1e-4)


def test_a_compiled_decode_step_goes_on(tiny: Subject) -> None:
    step = compiled_decode_step(tiny, 2, 40, steps=3, backend="eager", mode=None)
    rows = tiny.rows(2, 37)
    with torch.inference_mode():
        for _ in range(3):
            rows = torch.cat([rows, rows[:, -1:]], 1)
            torch.testing.assert_close(step(), tiny.model(rows).logits[:, -1:], atol=1e-4, rtol=1e-4)


def test_steps_are_counted_and_the_first_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    assert median_ms(seen.append, 20, CPU, seconds=60.0) >= 0.0
    assert seen == list(range(20))
    seen.clear()
    median_ms(seen.append, 20, CPU, seconds=0.0)
    assert seen == [0, 1, 2, 3]


def test_shapes_that_are_none_are_refused() -> None:
    with pytest.raises(BudgetctlError, match=r"qwen3-0\.6b"):
        shaped("gpt-9", CPU, torch.float32)


def made(subject: str, method: str, ms: float, step: float | None, **more: Any) -> Timing:
    given = {"batch": 1, "vocab": 9, "thinking_tokens": 5, "candidates": 64}
    return Timing(subject, method, ms=ms, step_ms=step, **(given | more))


def test_tables() -> None:
    text = tables(
        [
            made("a", "guidance", 0.5, 10.0),
            made("a", "published predictor", 20.0, 10.0),
            made("b", "guidance", 0.25, None),
            made("b", "guidance", 0.75, None, batch=8),
            made("b", "published predictor", 20.0, None),
        ]
    )
    lines = text.splitlines()
    assert "| 1 | 10.00 | 0.500 (5.0%) | 20.000 (200.0%) | 40x |" in lines
    assert "| 8 | 0.750 | not measured | not measured |" in lines


@pytest.mark.parametrize("name", ["thinking_tokens", "rows", "vocab"])
def test_sweeps(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for values, small in (
        ("LENGTHS", (64, 128)),
        ("ROWS", (1, 2)),
        ("CANDIDATES", (4, 8)),
        ("VOCABS", (96, 200)),
    ):
        monkeypatch.setattr(guidance_sweeps, values, small)
    make: Callable[..., Subject] = guidance_sweeps.logits_alone
    monkeypatch.setattr(
        guidance_sweeps,
        "logits_alone",
        lambda vocab, device, hidden=8: make(min(vocab, 200), device, hidden=8),
    )
    found = list(guidance_sweeps.sweep(name, CPU, steps=20, seconds=0.0))
    field = {"thinking_tokens": "thinking_tokens", "rows": "candidates", "vocab": "vocab"}[name]
    assert len({getattr(timing, field) for timing in found}) == 2
    path = tmp_path / "new" / "cost.png"
    draw(dict.fromkeys(("thinking_tokens", "rows", "vocab"), found), path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n")


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "timings.json"
    options = ["--batch", "1", "--vocab", "2100", "--no-reasoner", "--seconds", "0", "--steps", "20"]
    ran = CliRunner().invoke(app, ["bench", "guidance", *options, "--out", str(out)])
    assert ran.exit_code == 0, ran.output
    assert "V = 2,100, ms a step" in ran.stdout
    assert {timing["vocab"] for timing in json.loads(out.read_text())["timings"]} == {2100}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--batch", "1,x"], "--batch"),
        (["--batch", "0"], "--batch"),
        (["--vocab", "96"], "--vocab"),
        (["--no-reasoner"], "nothing to time"),
        (["--gguf-file", "a.gguf"], "--gguf-file"),
        (["--shape", "gpt-9"], "--shape"),
        (["--model", "/no/such"], "no model at '/no/such'"),
        (["--model", "tests", "--gguf-file", "a.gguf"], "no 'a.gguf' in tests"),
        (["--model", "tests", "--no-reasoner"], "model 'tests' cannot be loaded"),
    ],
)
def test_bad_options(options: list[str], named: str) -> None:
    ran = CliRunner().invoke(app, ["bench", "guidance", *options])
    assert ran.exit_code == 2
    assert named in ran.output
