"""What the comparison with vLLM makes of its measurements; the engines themselves are in tests/vllm."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer

from budgetctl.evals import vllm_bench
from budgetctl.evals.vllm_bench import ARMS, Turn, closed_by_itself, means, quality_table, throughput_table
from budgetctl.evals.vllm_engines import Stopwatch, start_engine


def test_a_ratio_is_taken_in_each_turn() -> None:
    """So that a turn on a busy machine is compared with one on a busy machine."""
    turns = {name: [Turn(100.0, 0.0), Turn(10.0, 0.0), Turn(50.0, 0.0)] for name in ARMS}
    turns["effort"] = [Turn(90.0, 0.1), Turn(9.5, 0.2), Turn(49.0, 0.4)]
    text = throughput_table({16: turns})
    row = text.splitlines()[-1].split("|")
    assert [cell.strip() for cell in row[1:3]] == ["16", "50"]
    effort = row[2 + list(ARMS).index("effort")]
    assert effort.strip() == "0.950 (0.900 to 0.980) [0.800, 130612 us]"
    assert "[" not in row[2 + list(ARMS).index("thinking_token_budget")]


def test_a_stopwatch_counts_its_methods_alone() -> None:
    ticks = iter([1.0, 4.0, 10.0, 10.5])

    class Watched:
        def work(self, value: int) -> int:
            return value + 1

        def rest(self) -> None: ...

        def fail(self) -> None:
            raise ValueError

    watched = Watched()
    watch = Stopwatch(watched, ("work", "fail"), lambda: next(ticks))
    assert watched.work(2) == 3
    watched.rest()
    with pytest.raises(ValueError):  # noqa: PT011
        watched.fail()
    assert watch.spent == 3.5


@pytest.mark.parametrize(("logit", "natural"), [(3.0, True), (2.0, False)])
def test_a_close_that_the_model_wants(logit: float, natural: bool, markers: Any) -> None:
    """At half of the probability: e^x against 17 others of 1."""
    d = markers["opened by the template"]
    prompt = [7, *d.turn_start_ids, *d.open_ids, *d.lead_ids]
    written = [5, 6, *d.forced_end_ids, 5]

    def model(ids: torch.Tensor) -> Any:
        logits = torch.zeros(1, ids.shape[1], 18)
        assert ids.shape[1] == len(prompt) + 2
        logits[:, :, d.forced_end_ids[0]] = logit
        return SimpleNamespace(logits=logits)

    assert closed_by_itself(model, prompt, written, d) is natural
    assert not closed_by_itself(model, prompt, [5, 6], d)


def test_quality() -> None:
    records = [{"correct": 1.0, "natural": 0.0, "over": 0.0, "thinking_tokens": 4.0}] * 3
    row = {"budget": 8, "method": "budgetctl", **means(records)}
    assert quality_table([row]).splitlines()[-1] == (
        "| 8 | budgetctl | 1.000 [1.000, 1.000] | 0.00 | 4.0 | 0.00 |  |"
    )


def test_a_clock_that_is_none() -> None:
    with pytest.raises(typer.BadParameter, match="expected wall or cpu"):
        vllm_bench.main(clock="sun")


def test_without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match="pip install vllm"):
        start_engine("anything", processor=True)
