"""What has to hold of the KV kernels on a GPU: they compute what the reference does, nothing races, graphs replay.

Elsewhere the same functions run on the plain path, which shows that the checks themselves work and nothing of the kernels;
in Triton's interpreter (``TRITON_INTERPRET=1``) the race check runs the kernel, one program after the other.
"""

from __future__ import annotations

import os
import random
from dataclasses import fields, replace
from typing import Any

import torch

from budgetctl.kernels import kv_reference
from budgetctl.kernels.gamma_guidance import has_triton
from budgetctl.kernels.kv_decode import KVScratch, _launch, decode_step
from budgetctl.kernels.kv_state import Protection, SlotState
from budgetctl.kernels.kv_victims import VictimTable, refill

#: Query heads a key-value head, size of keys and values, rows, capacities.
SHAPES: list[tuple[int, int, int, list[int]]] = [
    (1, 64, 2, [2048] * 4),
    (2, 128, 3, [2048, 300, 1111, 64]),
    (3, 64, 1, [1000, 2048]),
    (4, 128, 1, [2048] * 8),
    (4, 128, 8, [4096] * 8),
    (5, 96, 2, [777, 130]),
    (7, 128, 2, [513, 512]),
    (8, 256, 4, [2048, 1500]),
]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: Largest allowed error of outputs by dtype, and of importance.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
IMPORTANCE_TOLERANCE = 2e-5
PARTS = (1, 2, 4, 8, 16)
PROTECTION = Protection(4, 16)
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def full_state(
    batch: int, capacities: list[int], size: int, dtype: torch.dtype, device: torch.device, interval: int = 2
) -> SlotState:
    """Nine slots in ten hold a token, in any order."""
    generator = torch.Generator(device).manual_seed(size)
    state = SlotState.allocate(
        batch,
        capacities,
        size,
        size,
        interval=interval,
        value_norms=True,
        evicted=True,
        dtype=dtype,
        device=device,
    )
    for tensor in (state.keys, state.values, state.importance):
        tensor.copy_(torch.randn(tensor.shape, generator=generator, device=device))
    state.importance.abs_()
    if state.value_norms is not None:
        state.value_norms.copy_(state.values.float().abs().sum(2))
    slots = state.positions.shape[1]
    order = torch.rand(batch, slots, generator=generator, device=device).argsort(1)
    empty = torch.rand(batch, slots, generator=generator, device=device) < 0.1
    state.positions.copy_(order.masked_fill(empty, -1))
    state.lengths.fill_(slots)
    return state


def draw(state: SlotState, groups: int, seed: int) -> Inputs:
    """One token a row: query, key and value."""
    generator = torch.Generator(state.keys.device).manual_seed(seed)
    (batch, _, size), heads = state.keys.shape, len(state.capacities)
    query, key, value = (
        torch.randn(batch, count, size, generator=generator, device=state.keys.device).to(state.keys.dtype)
        for count in (heads * groups, heads, heads)
    )
    return query, key, value


def in_double(state: SlotState) -> SlotState:
    """A copy that the reference computes with in float64."""
    changed: dict[str, Any] = {}
    for field in fields(state):
        tensor = getattr(state, field.name)
        if isinstance(tensor, torch.Tensor):
            changed[field.name] = tensor.double() if tensor.is_floating_point() else tensor.clone()
    return replace(state, **changed)


def equality(
    device: torch.device,
    shapes: list[tuple[int, int, int, list[int]]] = SHAPES,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    steps: int = 4,
) -> list[dict[str, Any]]:
    """Largest errors of decode steps against the reference in float64, with victims named in between.

    Returns:
        One entry a shape and dtype: ``groups``, ``size``, ``rows``, ``capacities``, ``dtype``, ``output`` and
        ``importance`` (largest absolute errors), ``same`` (whether positions and counters are equal), ``passed``.
    """
    found = []
    for groups, size, batch, capacities in shapes:
        for dtype in dtypes:
            state = full_state(batch, capacities, size, dtype, device)
            exact = in_double(state)
            output = importance = 0.0
            same = True
            for i in range(steps):
                if i % 2 == 0:
                    # The importance decides, and it is near enough for that only where it is the same.
                    exact.importance.copy_(state.importance)
                    refill([state], PROTECTION, count=2)
                    refill([exact], PROTECTION, count=2)
                inputs = draw(state, groups, i)
                query, key, value = (tensor.double() for tensor in inputs)
                options: dict[str, Any] = {"scale": size**-0.5, "decay": 0.97}
                expected = kv_reference.decode_step(query, key, value, exact, **options)
                ours = decode_step(*inputs, state, **options)
                output = max(output, float((ours.double() - expected).abs().max()))
                held = exact.positions >= 0
                off = (state.importance.double() - exact.importance)[held]
                importance = max(importance, float(off.abs().max()))
                same &= all(
                    torch.equal(getattr(state, name), getattr(exact, name))
                    for name in ("positions", "queue", "cursor", "lengths")
                )
            passed = same and output < TOLERANCE[dtype] and importance < IMPORTANCE_TOLERANCE
            found.append(
                {
                    "groups": groups,
                    "size": size,
                    "rows": batch,
                    "capacities": capacities,
                    "dtype": str(dtype).removeprefix("torch."),
                    "output": output,
                    "importance": importance,
                    "same": same,
                    "passed": passed,
                }
            )
    return found


def races(
    device: torch.device,
    launches: int = 1000,
    *,
    shape: tuple[int, int, int, list[int]] = (4, 128, 4, [2048] * 7 + [1100]),
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, Any]:
    """Launches with random splits, each bit compared with the result of two launches, which cannot race.

    How many programs share a head changes the rounding, so that the bits are those of as many splits; their distance from
    one split is told beside. Scratch memory is NaN before each launch, so that what is read too early is seen.

    Returns:
        ``launches``, ``wrong`` (launches with any other bit), ``from_one_split`` (largest difference of outputs),
        ``passed``; or ``skipped`` with the reason, where the kernel cannot run.
    """
    if not has_triton() or (device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1"):
        return {"skipped": "the kernel runs on CUDA with Triton, or in its interpreter"}
    groups, size, batch, capacities = shape
    state = full_state(batch, capacities, size, dtype, device)
    refill([state], PROTECTION, count=2)
    kept = {name: tensor.clone() for name, tensor in state.tensors().items()}
    scratch = KVScratch.allocate([state], groups, max(PARTS))
    inputs = draw(state, groups, 0)

    def run(parts: int, fused: bool) -> dict[str, torch.Tensor]:
        for name, tensor in state.tensors().items():
            tensor.copy_(kept[name])
        for tensor in (scratch.partials, scratch.extremes, scratch.logits):
            tensor.fill_(torch.nan)
        out = _launch(
            *inputs, state, size**-0.5, "max", 0.9, "max", None, None, scratch, parts=parts, fused=fused
        )
        return state.tensors() | {"out": out, "counters": scratch.counters}

    expected = {parts: {n: t.clone() for n, t in run(parts, False).items()} for parts in PARTS}
    wrong = torch.zeros((), dtype=torch.int64, device=device)
    chooser = random.Random(0)
    for _ in range(launches):
        parts = chooser.choice(PARTS)
        wrong += _differs(run(parts, True), expected[parts])
    apart = max(float((expected[p]["out"] - expected[1]["out"]).float().abs().max()) for p in PARTS)
    return {
        "launches": launches,
        "wrong": int(wrong),
        "from_one_split": apart,
        "passed": int(wrong) == 0 and apart < TOLERANCE[dtype],
    }


def _differs(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> torch.Tensor:
    """Whether any bit differs, without waiting for the device."""
    return torch.stack(
        [(found[n].view(torch.uint8) != expected[n].view(torch.uint8)).any() for n in expected]
    ).any()


def graph(device: torch.device, replays: int = 200, *, layers: int = 4, slots: int = 1024) -> dict[str, Any]:
    """A CUDA graph of decode steps and a choice of victims for several layers, against the same done eagerly.

    Returns:
        ``replays``, ``passed`` (every bit of every state is the same); or ``skipped`` without CUDA.
    """
    if device.type != "cuda":
        return {"skipped": "CUDA graphs need a CUDA device"}
    groups = 4

    def make() -> tuple[list[SlotState], KVScratch, VictimTable, list[Inputs]]:
        states = [
            full_state(2, [slots - 64 * i, slots // 2], 128, torch.bfloat16, device) for i in range(layers)
        ]
        inputs = [draw(state, groups, i) for i, state in enumerate(states)]
        return states, KVScratch.allocate(states, groups), VictimTable.of(states), inputs

    def go_on(case: tuple[list[SlotState], KVScratch, VictimTable, list[Inputs]]) -> None:
        states, scratch, table, inputs = case
        refill(states, PROTECTION, count=2, prior=0.1, table=table)
        for _ in range(2):
            for state, layer in zip(states, inputs, strict=True):
                decode_step(*layer, state, scale=0.1, decay=0.97, scratch=scratch)

    captured, eager = make(), make()
    go_on(captured)  # compiles
    cuda_graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(cuda_graph):
        go_on(captured)
    for _ in range(replays):
        cuda_graph.replay()
    for _ in range(replays + 1):
        go_on(eager)
    same = all(
        not bool(_differs(one.tensors(), other.tensors()))
        for one, other in zip(captured[0], eager[0], strict=True)
    )
    return {"replays": replays, "passed": same}
