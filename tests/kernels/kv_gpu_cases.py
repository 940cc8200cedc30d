"""What only a GPU can show of the KV kernels: that programs do not race, nothing waits, and graphs replay.

Not collected by itself; run by ``test_kv_decode.py`` on a CUDA device.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from budgetctl.kernels import kv_decode
from budgetctl.kernels.kv_decode import decode_step
from budgetctl.kernels.kv_scratch import KVScratch
from budgetctl.kernels.kv_state import Protection, SlotState
from budgetctl.kernels.kv_victims import VictimTable, refill
from tests.kernels import kv_decode_cases
from tests.kernels.kv_decode_cases import DEVICE, INTERPRETED, Inputs, draw, fill, launch

LAUNCHES = 6 if INTERPRETED else 1000
PARTS = (1, 2, 4, 8, 16)
needs_cuda = pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")


def restore(state: SlotState, kept: dict[str, torch.Tensor]) -> None:
    for name, tensor in state.tensors().items():
        tensor.copy_(kept[name])


def differs(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> torch.Tensor:
    """Whether any bit differs, without waiting for the device."""
    return torch.stack(
        [(found[n].view(torch.uint8) != expected[n].view(torch.uint8)).any() for n in expected]
    ).any()


@pytest.mark.parametrize("batch", [1, 9])
def test_many_launches_give_the_bits_of_two_launches(batch: int) -> None:
    """With random splits, and NaN in the scratch, so that what is read too early is seen."""
    heads, size, groups = (2, 32, 3) if INTERPRETED else (8, 128, 4)
    state = fill(batch, [300] * (heads - 1) + [170], size, size, torch.bfloat16, interval=2)
    kv_decode_cases.refill(state)
    kept = {name: t.clone() for name, t in state.tensors().items()}
    scratch = KVScratch.allocate([state], groups, max(PARTS))
    inputs = draw(state, groups, 0)

    def run(parts: int, fused: bool) -> dict[str, torch.Tensor]:
        restore(state, kept)
        for tensor in (scratch.partials, scratch.extremes, scratch.logits):
            tensor.fill_(torch.nan)
        out = launch(inputs, state, parts=parts, fused=fused, decay=0.9, scratch=scratch)
        return state.tensors() | {"out": out, "counters": scratch.counters}

    expected = {parts: {n: t.clone() for n, t in run(parts, False).items()} for parts in PARTS}
    for parts in PARTS[1:]:
        torch.testing.assert_close(expected[parts]["out"], expected[1]["out"], atol=2e-2, rtol=0)
        torch.testing.assert_close(
            expected[parts]["importance"], expected[1]["importance"], atol=1e-6, rtol=1e-5
        )
    chooser = random.Random(0)
    wrong = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for _ in range(LAUNCHES):
        parts = chooser.choice(PARTS)
        wrong += differs(run(parts, True), expected[parts])
    assert int(wrong) == 0


def generate(
    states: list[SlotState], scratch: KVScratch, table: VictimTable, inputs: list[Inputs], rounds: int
) -> None:
    """Choices of victims and the steps between them, layer by layer."""
    for _ in range(rounds):
        refill(states, Protection(4, 8), count=2, prior=0.1, table=table)
        for _ in range(2):
            for state, layer in zip(states, inputs, strict=True):
                decode_step(*layer, state, scale=0.1, decay=0.97, scratch=scratch)


def make() -> tuple[list[SlotState], KVScratch, VictimTable, list[Inputs]]:
    states = [fill(2, [200 + 30 * i, 150], 64, 64, torch.bfloat16, interval=2, seed=i) for i in range(3)]
    inputs = [draw(state, 4, i) for i, state in enumerate(states)]
    return states, KVScratch.allocate(states, 4), VictimTable.of(states), inputs


def same(states: list[SlotState], others: list[SlotState]) -> bool:
    return all(
        torch.equal(tensor.view(torch.uint8), other.tensors()[name].view(torch.uint8))
        for state, other in zip(states, others, strict=True)
        for name, tensor in state.tensors().items()
    )


@needs_cuda
def test_a_graph_of_steps_and_refills_replays() -> None:
    graphed, eager = make(), make()
    generate(*graphed, rounds=1)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        generate(*graphed, rounds=1)
    for _ in range(30):
        graph.replay()
    generate(*eager, rounds=31)
    assert same(graphed[0], eager[0])
    assert (graphed[0][0].lengths == eager[0][0].lengths).all()


@needs_cuda
def test_nothing_waits_and_nothing_is_allocated_but_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(kv_decode, "_launch", _noted(kv_decode._launch, taken))
    case = make()
    generate(*case, rounds=1)
    assert len(taken) == 6  # the kernel, not the reference
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        generate(*case, rounds=3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_allocated() == before


def _noted(function: Any, taken: list[int]) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        taken.append(1)
        return function(*args, **kwargs)

    return call
