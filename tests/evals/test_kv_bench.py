"""What ``budgetctl bench kv`` times is in the state of real use, is counted right, and is compared fairly."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM
from typer.testing import CliRunner

from budgetctl.cli.app import app
from budgetctl.errors import BudgetctlError
from budgetctl.evals import kv_bench, kv_subjects
from budgetctl.evals.kv_bench import RUN, WARM, Timing, bench, compare, run_ms, take_turns
from budgetctl.evals.kv_bytes import (
    CacheShape,
    bandwidth_of,
    budget_bytes,
    full_bytes,
    kvpress_bytes,
    least_bytes,
)
from budgetctl.evals.kv_fill import Drawn, allocated_bytes, budget_cache, fill, full_cache, static_cache
from budgetctl.evals.kv_graphs import Graphed
from budgetctl.evals.kv_report import draw, markdown
from budgetctl.evals.kv_subjects import FULL, KVPRESS, STATIC, AttentionCall, Decoder, Setting, make
from budgetctl.kernels.kv_reference import protected
from budgetctl.kv import BudgetCache
from budgetctl.kv.policies import find_policy

CPU = torch.device("cpu")
GIB = 2.0**30


@pytest.fixture(scope="module")
def tiny() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=96,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        eos_token_id=None,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config).double().eval()


@pytest.fixture
def drawn(tiny: PreTrainedModel) -> Drawn:
    return Drawn(tiny.config, 3, torch.float64, CPU)


@pytest.mark.parametrize("policy", ["decayed-max", "window"])
def test_a_filled_layer_is_as_after_a_prompt(drawn: Drawn, policy: str) -> None:
    """Importance aside, which is drawn."""
    filled = BudgetCache(drawn.config, 60, policy).layers[0]
    fill(filled, drawn, 40, prompt=40)
    real = BudgetCache(drawn.config, 60, policy).layers[0]
    assert filled.state is not None
    key, value = (filled.state.heads(t, 40).clone() for t in (filled.state.keys, filled.state.values))
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True  # type: ignore[assignment]
    with torch.inference_mode():
        key, value = real.update(key, value)
        real.attend(module, drawn.normal(4, 40), key, value, None, 0.3)
        assert real.state is not None
        for name, tensor in filled.state.tensors().items():
            if name != "importance":
                torch.testing.assert_close(tensor, real.state.tensors()[name], msg=f"{name} differs")
        for name in ("cumulative_length", "evicted_at", "queued", "waiting"):
            assert getattr(filled, name) == getattr(real, name), name
        assert filled.late.in_order
        assert real.late.in_order
        filled.state.importance.copy_(real.state.importance)
        for _ in range(25):
            new = [drawn.normal(heads, 1) for heads in (4, 2, 2)]
            outputs = []
            for layer in (filled, real):
                layer.update(new[1], new[2])
                outputs.append(layer.attend(module, new[0], new[1], new[2], None, 0.3))
            torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("prompt", [9, 40])
def test_a_filled_layer_over_its_capacity(tiny: PreTrainedModel, drawn: Drawn, prompt: int) -> None:
    cache = BudgetCache(tiny.config, 48)
    for layer in cache.layers:
        fill(layer, drawn, 200, prompt)
        assert layer.state is not None
        positions = layer.state.head_positions()
        assert all(len(set(head)) == 48 for row in positions.tolist() for head in row)
        assert int(positions.amax()) == 199
        # A prompt of over a fifth of the slots competes with the rest.
        kept = prompt if prompt <= 48 // 5 else 4
        assert (protected(layer.state, layer.protection).sum(2) == kept + layer.protection.recent).all()
        assert not torch.equal(positions, positions.sort(2).values)
    generated = BudgetCache(tiny.config, 48)
    tiny.set_attn_implementation("budget_kv")
    with torch.inference_mode():
        tiny(torch.randint(1, 96, (3, 200)), past_key_values=generated)
        assert generated.bytes_allocated == cache.bytes_allocated
        for i in range(20):
            tiny(torch.full((3, 1), 5), position_ids=torch.tensor([[200 + i]]), past_key_values=cache)
    assert cache.get_seq_length() == 220
    latest = cache.protection.recent
    assert (cache.positions(1) >= 220 - latest).sum(2).eq(latest).all()
    assert (cache.positions(1) >= 0).all()


def test_a_layer_in_use_is_not_filled(drawn: Drawn) -> None:
    cache = budget_cache(drawn, 30, 48, "window")
    with pytest.raises(BudgetctlError, match="30 tokens"):
        fill(cache.layers[0], drawn, 30)
    with pytest.raises(BudgetctlError, match="expected a new one"):
        fill(BudgetCache(drawn.config, [[40, 50]] * 2).layers[0], drawn, 30)


def test_bytes_allocated(drawn: Drawn) -> None:
    token = 2 * 2 * 2 * 8 * 8  # keys and values, layers, heads, size, float64
    assert drawn.token_bytes == CacheShape.of(drawn).token == token
    assert allocated_bytes(full_cache(drawn, 50)) == 3 * 50 * token
    assert allocated_bytes(full_cache(drawn, 50, layers=1)) == 3 * 50 * token // 2
    assert allocated_bytes(static_cache(drawn, 50, 14)) == 3 * 64 * token
    assert allocated_bytes(budget_cache(drawn, 50, 64, "window")) > 3 * 64 * token


SHAPE = CacheShape(layers=36, heads=8, groups=4, size=128)


def test_bytes_moved() -> None:
    assert SHAPE.token == 147_456
    assert least_bytes(SHAPE, 2, 10) == 2 * 147_456 * 11
    assert full_bytes(SHAPE, 2, 10) == 2 * 147_456 * (10 + 11 + 11)
    assert full_bytes(SHAPE, 1, 10, static=True) == least_bytes(SHAPE, 1, 10)
    steps = [full_bytes(SHAPE, 1, 100 + i) for i in range(8)]
    kept = 2 * 100 * SHAPE.token
    assert kvpress_bytes(SHAPE, 1, 100, 8) == pytest.approx((sum(steps) + kept) / 8)


@pytest.mark.parametrize("policy", ["decayed-max", "window", "snapkv"])
def test_a_budget_moves_little_more_than_the_limit(policy: str) -> None:
    least = least_bytes(SHAPE, 8, 2048)
    found = budget_bytes(SHAPE, 8, 2048, find_policy(policy).fitted(2048))
    assert least < found < 1.13 * least
    assert found < 0.05 * full_bytes(SHAPE, 8, 16_384)


def test_bandwidth_is_that_of_the_module() -> None:
    assert bandwidth_of("NVIDIA H100 80GB HBM3") == 3.35e12
    assert bandwidth_of("NVIDIA H200") == 4.8e12
    assert bandwidth_of("NVIDIA H100 PCIe") is None
    assert bandwidth_of("NVIDIA A100-SXM4-80GB") is None


def setting(batch: int = 2, tokens: int = 100, capacity: int = 64, runs: int = 2) -> Setting:
    return Setting(batch, tokens, capacity, runs, WARM + runs * RUN, 16)


def test_slots_are_never_more_than_needed() -> None:
    assert setting(tokens=100, capacity=64).slots == 64
    assert setting(tokens=100, capacity=0).slots == setting(tokens=100, capacity=10_000).slots > 100


@pytest.mark.parametrize("name", [FULL, STATIC, "decayed-max", "h2o"])
@pytest.mark.parametrize("capacity", [0, 64])
def test_a_call_is_attention_over_what_is_held(drawn: Drawn, name: str, capacity: int) -> None:
    subject = make(name, drawn, setting(3, 100, capacity), layers=1)
    call = AttentionCall(drawn, subject, setting(3, 100, capacity))
    with call.ready():
        found = call()
    layer: Any = subject.cache.layers[0]
    if isinstance(subject.cache, BudgetCache):
        keys, values, held = (
            layer.state.heads(layer.state.keys),
            layer.state.heads(layer.state.values),
            layer.state.head_positions() >= 0,
        )
    else:
        keys, values = layer.keys, layer.values
        held = torch.arange(keys.shape[2]).expand(*keys.shape[:3]) <= 100
    expected_count = 101 if name in (FULL, STATIC) or not capacity else 64
    assert (held.sum(2) == expected_count).all()
    logits = call._query[:, :, 0].unflatten(1, (2, 2)) @ keys.mT / 8**0.5
    weights = logits.masked_fill(~held[:, :, None], -torch.inf).softmax(3)
    expected = (weights @ values).flatten(1, 2)[:, None]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", [FULL, STATIC, "decayed-max"])
def test_a_step_goes_on_by_a_token(tiny: PreTrainedModel, drawn: Drawn, name: str) -> None:
    subject = make(name, drawn, setting(3), layers=None)
    step = Decoder(tiny, subject, setting(3))
    with step.ready():
        first, second = step(), step()
    assert first.shape == (3, 1, 96)
    assert not torch.equal(first, second)
    assert int(subject.cache.get_seq_length()) == 102
    assert tiny.config._attn_implementation == ("budget_kv" if name == "decayed-max" else "sdpa")


class Counted:
    """A step that notes its calls."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    @contextmanager
    def ready(self) -> Iterator[None]:
        self.log.append(f"{self.name} ready")
        yield

    def __call__(self) -> None:
        self.log.append(self.name)


def test_subjects_take_turns() -> None:
    log: list[str] = []
    times = take_turns([Counted("a", log), Counted("b", log)], CPU, runs=3, seconds=60.0)
    runs = [name.split()[0] for name in log if name.endswith("ready")]
    assert runs == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert log.count("a") == log.count("b") == WARM + 3 * RUN
    assert [len(found) for found in times] == [3, 3]
    assert [len(found) for found in take_turns([Counted("a", log)], CPU, runs=9, seconds=0.0)] == [2]


def test_what_works_once_in_so_many_calls_is_timed_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    step = Counted("a", log)
    step.length = 3 * RUN  # type: ignore[attr-defined]
    monkeypatch.setattr(kv_bench, "run_ms", lambda step, steps, device: float(steps))
    assert take_turns([step], CPU, runs=2, seconds=60.0) == [[RUN, RUN]]
    assert log.count("a") == 3 * RUN  # before the first


def test_the_clock_of_one_thread_is_the_process_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_bench.time, "process_time", iter([1.0, 1.5]).__next__)
    monkeypatch.setattr(kv_bench.time, "perf_counter", iter([1.0, 3.0]).__next__)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert run_ms(lambda: None, 5, CPU) == 500.0
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert run_ms(lambda: None, 5, CPU) == 2000.0


def test_the_ratio_weighs_all_steps() -> None:
    assert compare([2.0, 2.0, 2.0], [4.0, 4.0, 4.0]) == (0.5, 0.5, 0.5)
    ratio, low, high = compare([1.0, 1.0, 1.0, 9.0], [2.0, 2.0, 2.0, 2.0])
    assert ratio == 12 / 8
    assert low == 0.5 < ratio < high


@pytest.mark.parametrize("kind", ["step", "call"])
def test_every_method_is_timed(tiny: PreTrainedModel, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_bench, "RUN", 4)
    methods = [FULL, "decayed-max", STATIC]
    left: list[str] = []
    settings = [setting(tokens=100), setting(tokens=40, capacity=0)]
    options: dict[str, Any] = {"dtype": torch.float64, "device": CPU, "seconds": 0.0, "left": left.append}
    found = list(bench("tiny", tiny.config, tiny, settings, methods, kind=kind, most_bytes=GIB, **options))
    assert [(t.tokens, t.method) for t in found] == [(n, m) for n in (100, 40) for m in methods]
    assert all(t.ms > 0 and t.runs == 2 and t.ratio for t in found)
    assert found[0].ratio == 1.0
    assert left == []
    full, ours = found[:2]
    assert full.moved > 2.9 * full.least
    assert ours.least < 0.7 * full.least
    part = 1 if kind == "step" else 2
    assert full.least == 2 * 2 * 2 * 2 * 8 * 8 * 101 // part

    assert full.allocated == 2 * 2 * 2 * 2 * 8 * 8 * 100 // part

    # Calls go through all layers too.
    needed = 2 * 100 * 2 * 2 * 2 * 8 * 8
    found = list(
        bench("tiny", tiny.config, tiny, settings[:1], methods, kind=kind, most_bytes=needed - 1, **options)
    )
    assert [(t.method, t.ratio) for t in found] == [("decayed-max", None)]
    assert len(left) == 2
    assert "DynamicCache left out" in left[0]
    with pytest.raises(BudgetctlError, match="kind='layer'"):
        list(bench("tiny", tiny.config, tiny, settings, methods, kind="layer", most_bytes=GIB, **options))


def test_a_graph_does_the_work_of_its_steps(drawn: Drawn) -> None:
    captured: list[Callable[[], object]] = []

    def capture(run: Callable[[], object]) -> Callable[[], object]:
        captured.append(run)
        return run

    log: list[str] = []
    step = Graphed(Counted("a", log), 4, capture)
    for _ in range(8):
        step()
    assert log.count("a") == 8
    assert len(captured) == 1
    # What grows, or still has room, cannot be replayed.
    for name, tokens in ((FULL, 100), ("decayed-max", 40)):
        given = setting(3, tokens)
        subject = make(name, drawn, given, layers=1)
        assert Graphed.of(AttentionCall(drawn, subject, given), subject, given) is None


class FakePress:
    """Notes the steps that its hooks see."""

    made: list[FakePress] = []  # noqa: RUF012

    def __init__(self, base: Any, compression_interval: int, target_size: int) -> None:
        self.given, self.seen = (compression_interval, target_size), []
        FakePress.made.append(self)

    def post_init_from_model(self, model: Any) -> None:
        pass

    def forward_hook(self, module: Any, inputs: Any, options: dict[str, Any], output: Any) -> Any:
        self.seen.append(options["cache_position"].tolist())
        return output


def test_kvpress_hooks_come_and_go(
    tiny: PreTrainedModel, drawn: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("kvpress")
    module.DecodingPress = FakePress  # type: ignore[attr-defined]
    module.SnapKVPress = lambda window_size: window_size  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kvpress", module)
    subject = make(KVPRESS, drawn, setting(3))
    press = FakePress.made[-1]
    # As many slots at its peak as a BudgetCache of 64.
    assert press.given == (16, 48)
    step = Decoder(tiny, subject, setting(3))
    other = Decoder(tiny, make(FULL, drawn, setting(3)), setting(3))
    for one in (step, other, step):
        with one.ready():
            one()
    assert press.seen == [[100], [100], [101], [101]]
    assert subject.cache.get_seq_length() == 50


def test_kvpress_is_left_out_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_subjects, "find_spec", lambda name: None)
    found = kv_subjects.kvpress_missing()
    assert found is not None
    assert "left out" in found
    monkeypatch.setattr(kv_subjects, "find_spec", lambda name: object())
    assert kv_subjects.kvpress_missing() is None


def made(method: str, tokens: int, ms: float, **more: Any) -> Timing:
    given: dict[str, Any] = {
        "model": "a",
        "kind": "step",
        "batch": 8,
        "capacity": 64,
        "runs": 2,
        "ratio": ms / 4,
        "low": 0.25,
        "high": 1.5,
        "allocated": 2**20,
        "moved": 3 * 2**20,
        "least": 2**30,
        "least_ms": None,
    }
    return Timing(method=method, tokens=tokens, ms=ms, **(given | more))


def test_report(tmp_path: Path) -> None:
    timings = [
        made(FULL, 1024, 4.0),
        made("window", 1024, 2.0),
        made("window", 2048, 2.0, ratio=None),
        made("window", 2048, 123.4, kind="call", least_ms=0.25),
    ]
    lines = markdown(timings).splitlines()
    assert "| 8 | 1,024 | window | 2 | 0.50 [0.25, 1.50] | 1.00 | 3.00 | 1,024 |" in lines
    assert "| 8 | 2,048 | window | 2 |  | 1.00 | 3.00 | 1,024 |" in lines
    assert "| 8 | 2,048 | window | 123 | 30.85 [0.25, 1.50] | 1.00 | 3.00 | 1,024 | 0.250 |" in lines
    path = tmp_path / "new" / "cost.png"
    draw(timings, path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_bench, "RUN", 2)
    out, plot = tmp_path / "timings.json", tmp_path / "cost.png"
    options = ["--batch", "1", "--tokens", "40,90", "--capacity", "64", "--policies", "decayed-max,window"]
    options += ["--seconds", "0", "--no-kvpress", "--out", str(out), "--plot", str(plot)]
    ran = CliRunner().invoke(app, ["bench", "kv", *options])
    assert ran.exit_code == 0, ran.output
    assert "embedded reasoner, a decode step" in ran.stdout
    assert "embedded reasoner, a call of attention, one layer" in ran.stdout
    found = json.loads(out.read_text())
    assert {timing["method"] for timing in found["timings"]} == {FULL, STATIC, "decayed-max", "window"}
    assert len(found["timings"]) == 2 * 2 * 4
    assert plot.exists()


def test_calls_of_a_shape_need_no_weights(tmp_path: Path) -> None:
    options = ["--batch", "1", "--tokens", "40", "--no-reasoner", "--shape", "qwen3-8b", "--no-steps"]
    options += ["--seconds", "0", "--no-static", "--out", str(tmp_path / "timings.json"), "--json"]
    ran = CliRunner().invoke(app, ["bench", "kv", *options])
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert [(t["model"], t["kind"], t["method"]) for t in found["timings"]] == [
        ("qwen3-8b", "call", FULL),
        ("qwen3-8b", "call", "diverse-max"),
    ]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--batch", "0"], "--batch"),
        (["--tokens", "1,x"], "--tokens"),
        (["--no-reasoner"], "nothing to time"),
        (["--no-steps", "--no-calls"], "nothing to time"),
        (["--gguf-file", "a.gguf"], "--gguf-file"),
        (["--shape", "gpt-9"], "--shape"),
        (["--policies", "best"], "unknown policy"),
    ],
)
def test_bad_options(options: list[str], named: str) -> None:
    ran = CliRunner().invoke(app, ["bench", "kv", *options])
    assert ran.exit_code == 2
    assert named in ran.output
