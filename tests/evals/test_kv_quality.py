"""Quality of a KV budget: teacher forcing equals step-by-step decoding, cells resume, and tables say what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import Cache, LlamaConfig, LlamaForCausalLM
from typer import Typer
from typer.testing import CliRunner

from budgetctl.errors import BudgetctlError
from budgetctl.evals import kv_quality
from budgetctl.evals.kv_presses import PRESSES, available, pressed
from budgetctl.evals.kv_quality import Cell, kept_reading, plan, read_cell
from budgetctl.evals.kv_quality_report import draw, markdown, summarise
from budgetctl.evals.kv_teacher import Reading, counted, quality, read_forced
from budgetctl.evals.kv_texts import Text, make_texts
from budgetctl.evals.kv_variants import parse_variant
from budgetctl.kv import POLICIES, BudgetCache
from budgetctl.training.reasoner.tokenizer import build_tokenizer

LENGTH, PROMPT, SLOTS = 44, 8, 24


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).double().eval()


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(0, 64, (3, LENGTH), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def by_steps(model: LlamaForCausalLM, ids: torch.Tensor, cache: Cache) -> np.ndarray:
    """[texts, predictions] nats by calls of the whole model, one a token."""
    losses, start = [], 0
    for stop in range(PROMPT, LENGTH):
        places = torch.arange(start, stop)[None].expand(len(ids), -1)
        logits = model(ids[:, start:stop], past_key_values=cache, position_ids=places).logits[:, -1]
        losses.append(F.cross_entropy(logits.float(), ids[:, stop], reduction="none"))
        start = stop
    return torch.stack(losses, 1).numpy()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_reading_is_what_step_by_step_decoding_gives(
    model: LlamaForCausalLM, ids: torch.Tensor, policy: str
) -> None:
    found = read_cell(model, ids, Cell("budgetctl", policy, SLOTS), PROMPT)
    assert found.peak == SLOTS
    model.set_attn_implementation("budget_kv")
    np.testing.assert_allclose(
        found.nll, by_steps(model, ids, BudgetCache(model.config, SLOTS, policy)), rtol=1e-5
    )


def test_a_cache_with_room_for_all_loses_nothing(model: LlamaForCausalLM, ids: torch.Tensor) -> None:
    full = read_cell(model, ids, Cell("full", "full cache", LENGTH), PROMPT)
    assert full.peak == LENGTH - 1
    roomy = read_cell(model, ids, Cell("budgetctl", "decayed-max", LENGTH), PROMPT)
    found = quality(roomy, full, counted(LENGTH, PROMPT, LENGTH))
    assert found.loss.mean == pytest.approx(0, abs=1e-6)
    assert found.agreement.mean == 1
    tight = read_cell(model, ids, Cell("budgetctl", "window", SLOTS), PROMPT)
    before = SLOTS + 1 - PROMPT
    np.testing.assert_allclose(tight.nll[:, :before], full.nll[:, :before], rtol=1e-5)
    assert not np.allclose(tight.nll[:, before], full.nll[:, before], rtol=1e-5)


def test_attention_is_put_back(model: LlamaForCausalLM, ids: torch.Tensor) -> None:
    kinds = [type(layer.self_attn) for layer in model.model.layers]
    read_forced(model, ids, BudgetCache(model.config, SLOTS), PROMPT)
    assert [type(layer.self_attn) for layer in model.model.layers] == kinds


@pytest.mark.parametrize(
    ("length", "prompt", "capacity", "first"), [(10, 4, 6, 3), (10, 4, 3, 0), (10, 4, 8, 5), (10, 4, 10, 0)]
)
def test_predictions_count_once_something_can_have_gone(
    length: int, prompt: int, capacity: int, first: int
) -> None:
    assert list(range(length - prompt))[counted(length, prompt, capacity)] == list(
        range(first, length - prompt)
    )


def test_quality_is_paired_by_text() -> None:
    full = Reading(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1, 2], [3, 4]]), 3)
    other = Reading(full.nll + 0.5, np.array([[1, 9], [9, 4]]), 2)
    found = quality(other, full, slice(0, None))
    # Every text loses as much, so that there is nothing to be unsure of.
    assert (found.loss.mean, found.loss.low, found.loss.high) == pytest.approx((0.5, 0.5, 0.5))
    assert found.agreement.mean == pytest.approx(0.5)


def test_a_variant_sets_the_policy_and_the_cache() -> None:
    policy, options = parse_variant("decayed-max:decay=0.9,recent=5,interval=2")
    assert policy == POLICIES["decayed-max"](interval=2, decay=0.9)  # type: ignore[call-arg]
    assert options == {"recent": 5}
    for wrong in ("oldest", "window:decay=0.9", "h2o:decay=fast"):
        with pytest.raises(BudgetctlError, match="expected"):
            parse_variant(wrong)


def test_a_cell_is_read_once(tmp_path: Path) -> None:
    reading = Reading(np.array([[0.25, 1.5]]), np.array([[7, 3]]), 5)
    first = kept_reading(tmp_path / "cell.jsonl", lambda: reading)
    again = kept_reading(tmp_path / "cell.jsonl", lambda: pytest.fail("read again"))
    for found in (first, again):
        assert found.peak == 5
        np.testing.assert_array_equal(found.nll, reading.nll)
        np.testing.assert_array_equal(found.likeliest, reading.likeliest)


def test_the_plan_names_every_cell() -> None:
    cells = plan(40, "0.5,1", "window;decayed-max:decay=0.9", "tova")
    assert [(cell.source, cell.name, cell.capacity) for cell in cells] == [
        ("full", "full cache", 40),
        ("budgetctl", "window", 20),
        ("budgetctl", "decayed-max:decay=0.9", 20),
        ("kvpress", "tova", 20),
        ("budgetctl", "window", 40),
        ("budgetctl", "decayed-max:decay=0.9", 40),
    ]
    assert len({cell.file for cell in cells}) == len(cells)
    with pytest.raises(BudgetctlError, match="share of 2"):
        plan(40, "2", "window", "")


def test_the_table_compares_with_the_default(tmp_path: Path) -> None:
    def reading(more: float) -> Reading:
        return Reading(np.full((2, 6), 1.0 + more), np.zeros((2, 6), dtype=int), 5)

    cells = [Cell("budgetctl", "diverse-max", 5), Cell("kvpress", "tova", 5)]
    readings = {Cell("full", "full cache", 10): reading(0.0), cells[0]: reading(0.2), cells[1]: reading(0.5)}
    rows = summarise(readings, 10, 4)
    assert [(row["name"], row["loss"], row["tokens"]) for row in rows] == [
        ("diverse-max", pytest.approx(0.2), 8),
        ("tova", pytest.approx(0.5), 8),
    ]
    assert "worse" not in rows[0]
    assert rows[1]["worse"] == pytest.approx(0.3)
    lines = markdown(rows).splitlines()
    assert "kvpress tova" in lines[3]
    assert "+0.300 [+0.300, +0.300]" in lines[3]
    draw(rows, tmp_path / "quality.png")
    assert (tmp_path / "quality.png").stat().st_size > 1000


def test_splits_share_no_text(model: LlamaForCausalLM) -> None:
    pytest.importorskip("reasoning_gym", reason="makes the worked problems: pip install reasoning-gym")
    tokenizer = build_tokenizer()
    # The tiny model has no ids beyond 63.
    wide = LlamaForCausalLM(LlamaConfig(**{**model.config.to_dict(), "vocab_size": len(tokenizer)})).eval()
    texts = {split: make_texts(wide, tokenizer, split, each=2, length=40) for split in ("dev", "held-out")}
    assert [text.kind for text in texts["dev"]] == ["docs"] * 2 + ["worked"] * 2 + ["own"] * 2
    assert all(len(text.ids) == 40 for split in texts.values() for text in split)
    assert not {text.ids for text in texts["dev"]} & {text.ids for text in texts["held-out"]}
    assert texts["dev"] == make_texts(wide, tokenizer, "dev", each=2, length=40)


def test_an_interrupted_run_goes_on(
    model: LlamaForCausalLM, ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [Text("docs", str(at), tuple(row)) for at, row in enumerate(ids.tolist())]
    monkeypatch.setattr(kv_quality, "load_subject", lambda *_: (model, None))
    monkeypatch.setattr(kv_quality, "make_texts", lambda *_, **__: texts)
    app = Typer()
    app.command()(kv_quality.main)
    arguments = [
        "--length",
        str(LENGTH),
        "--prompt",
        str(PROMPT),
        "--shares",
        "0.5",
        "--presses",
        "",
        "--json",
    ]
    arguments += ["--policies", "window;h2o", "--out", str(tmp_path)]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    rows = json.loads(first.stdout)
    assert [(row["name"], row["peak"], row["texts"]) for row in rows] == [("window", 22, 3), ("h2o", 22, 3)]
    folder = next(tmp_path.iterdir())
    assert {path.name for path in folder.iterdir()} >= {
        "summary.json",
        "table.md",
        "quality.png",
        "texts.jsonl",
    }
    monkeypatch.setattr(kv_quality, "read_cell", lambda *_: pytest.fail("read again"))
    again = CliRunner().invoke(app, arguments)
    assert json.loads(again.stdout) == rows


needs_kvpress = pytest.mark.skipif(
    not available(),
    reason="compares with kvpress: pip install --no-deps kvpress, and pip install cachetools fire (it asks for transformers < 5.3)",
)


@needs_kvpress
@pytest.mark.parametrize("press", PRESSES)
def test_a_press_holds_as_many_slots_as_the_cell_allows(
    model: LlamaForCausalLM, ids: torch.Tensor, press: str
) -> None:
    single = model.float()
    try:
        full = read_cell(single, ids, Cell("full", "full cache", LENGTH), PROMPT)
        found = read_cell(single, ids, Cell("kvpress", press, SLOTS), PROMPT)
        assert found.peak == SLOTS
        before = SLOTS + 1 - PROMPT
        np.testing.assert_allclose(found.nll[:, :before], full.nll[:, :before], atol=1e-4)
        assert not np.allclose(found.nll[:, before:], full.nll[:, before:], atol=1e-4)
    finally:
        model.double()


@needs_kvpress
def test_a_press_that_cannot_hold_as_many_says_so(model: LlamaForCausalLM) -> None:
    with pytest.raises(BudgetctlError, match="whole number of intervals"), pressed(model, "tova", 23, PROMPT):
        pass
