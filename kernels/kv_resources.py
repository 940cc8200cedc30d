"""What the KV kernels take of a GPU and move in one launch: compiled ahead of time, without a GPU (see ``aot``)."""

from __future__ import annotations

import torch

from budgetctl.kernels import kv_novelty, kv_victims
from budgetctl.kernels.aot import TRITON_TYPES, LaunchCost, Resources, compile_kernel, require_compiler
from budgetctl.kernels.kv_decode import launch_options, splits
from budgetctl.kernels.kv_state import Group, Rule, SlotState

__all__ = [
    "compiled_combine",
    "compiled_decode",
    "compiled_novelty",
    "compiled_victims",
    "decode_cost",
    "novelty_cost",
    "shape_of_state",
    "victims_cost",
]


def shape_of_state(
    batch: int = 1,
    heads: int = 8,
    slots: int = 2048,
    size: int = 128,
    *,
    dtype: torch.dtype = torch.bfloat16,
    interval: int = 4,
) -> SlotState:
    """A state without data (meta tensors), for its sizes; with norms of values, as the default policy has them."""
    return SlotState.allocate(
        batch, [slots] * heads, size, size, interval=interval, value_norms=True, dtype=dtype, device="meta"
    )


def compiled_decode(
    groups: int = 4,
    size: int = 128,
    parts: int = 16,
    *,
    heads: int = 8,
    slots: int = 2048,
    dtype: torch.dtype = torch.bfloat16,
    rule: Rule = "max",
    group: Group = "max",
    launches: int = 1,
    capability: int = 90,
) -> tuple[Resources, str]:
    """Compile the decode kernel for ``sm_{capability}``; needs Triton, no GPU.

    Args:
        groups: G, query heads that share a key-value head.
        size: D and E.
        parts: splits of a head.
        heads: H.
        slots: of a head.
        dtype: of queries, keys and values: float32, bfloat16 or float16.
        rule: of importance.
        group: ``max`` or ``mean``.
        launches: 1, or 2 for the first of two.
        capability: compute capability times ten.

    Returns:
        ``(resources, PTX)``.

    Raises:
        KernelError: without Triton, or in a process in which Triton interprets.
    """
    require_compiler()
    from budgetctl.kernels.kv_decode_triton import kv_decode_kernel

    options = launch_options(
        shape_of_state(1, heads, slots, size, dtype=dtype), groups, rule=rule, group=group
    )
    warps, stages = options.pop("num_warps"), options.pop("num_stages")
    model = ("query", "key", "value", "out", "keys", "values")
    numbers = ("importance", "value_norms", "partials", "extremes", "logits")
    counts = ("positions", "queue", "cursor", "lengths", "counters")
    types = dict.fromkeys(model, "*" + TRITON_TYPES[dtype])
    types |= dict.fromkeys(numbers, "*fp32") | dict.fromkeys(counts, "*i32")
    types |= {"first": "*i64", "sizes": "*i64", "real": "*i1"}
    strides = ("query", "query_head", "key", "key_head", "value", "value_head", "slots", "logits")
    return compile_kernel(
        kv_decode_kernel,
        types | {"scale": "fp32", "decay": "fp32"},
        options | {"REAL_BY_HEAD": False, "SPLITS": parts, "FUSED": launches == 1, "evicted": None},
        [*types, *(f"{name}_stride" for name in strides)],
        warps=int(warps),
        stages=int(stages),
        capability=capability,
    )


def compiled_combine(
    groups: int = 4,
    size: int = 128,
    parts: int = 16,
    *,
    heads: int = 8,
    slots: int = 2048,
    capability: int = 90,
) -> tuple[Resources, str]:
    """Compile the second of two launches for bfloat16; arguments and result as of :func:`compiled_decode`."""
    require_compiler()
    from budgetctl.kernels.kv_combine_triton import kv_combine_kernel

    options = launch_options(shape_of_state(1, heads, slots, size), groups, rule="max", group="max")
    types = {"out": "*bf16"} | dict.fromkeys(("importance", "partials", "extremes", "logits"), "*fp32")
    types |= dict.fromkeys(("queue", "cursor", "lengths"), "*i32")
    types |= {"first": "*i64", "sizes": "*i64", "real": "*i1"}
    names = [name for name in kv_combine_kernel.arg_names if name in options]
    return compile_kernel(
        kv_combine_kernel,
        types | {"decay": "fp32"},
        {name: options[name] for name in names} | {"REAL_BY_HEAD": False, "SPLITS": parts},
        [*types, "slots_stride", "logits_stride"],
        warps=4,
        capability=capability,
    )


def compiled_victims(
    slots: int = 2048,
    count: int = 4,
    *,
    heads: int = 8,
    prior: bool = True,
    scores: bool = False,
    capability: int = 90,
) -> tuple[Resources, str]:
    """Compile the victims kernel for ``sm_{capability}``; needs Triton, no GPU.

    Args:
        slots: of the widest head.
        count: W, which is the queue's length too.
        heads: H.
        prior: with the guarded score.
        scores: with scores that are given, in its place.
        capability: compute capability times ten.

    Returns:
        ``(resources, PTX)``.

    Raises:
        KernelError: without Triton, or in a process in which Triton interprets.
    """
    require_compiler()
    from budgetctl.kernels.kv_victims_triton import kv_victims_kernel

    options = kv_victims.launch_options(slots)
    warps = options.pop("num_warps")
    constants: dict[str, int | None] = {"HEADS": heads, "QUEUE": count, "COUNT": count}
    constants["GUARDED"] = prior and not scores
    if not scores:
        constants["scores"] = None
    types = {"table": "*i64", "scores": "*fp32", "prompt_share": "fp32", "prior": "fp32"}
    return compile_kernel(
        kv_victims_kernel,
        types,
        options | constants,
        ["table", "scores", *(f"scores_{name}_stride" for name in ("layer", "row", "head"))],
        warps=int(warps),
        capability=capability,
    )


def compiled_novelty(
    size: int = 128,
    parts: int = 4,
    *,
    heads: int = 8,
    dtype: torch.dtype = torch.bfloat16,
    capability: int = 90,
) -> list[tuple[Resources, str]]:
    """Compile the three novelty kernels for ``sm_{capability}``; needs Triton, no GPU.

    Args:
        size: D.
        parts: splits of a head.
        heads: H.
        dtype: of keys: float32, bfloat16 or float16.
        capability: compute capability times ten.

    Returns:
        ``(resources, PTX)`` of each, in the order of the launches.

    Raises:
        KernelError: without Triton, or in a process in which Triton interprets.
    """
    require_compiler()
    from budgetctl.kernels import kv_novelty_triton as triton_kernels

    options: dict[str, object] = dict(kv_novelty.launch_options(size))
    warps = kv_novelty.launch_options(size)["num_warps"]
    del options["num_warps"]
    options |= {"HEADS": heads, "SPLITS": parts, "NORMS": True}
    options |= {"BLOCK": kv_novelty.BLOCK}
    types = {"table": "*i64", "sums": "*fp32", "found": "*fp32", "weight": "fp32"}
    types["anchor"] = "*" + TRITON_TYPES[dtype]
    found = []
    for kernel in (
        triton_kernels.kv_directions_kernel,
        triton_kernels.kv_apart_kernel,
        triton_kernels.kv_diverse_kernel,
    ):
        used = {name: kind for name, kind in types.items() if name in kernel.arg_names}
        constants = {name: value for name, value in options.items() if name in kernel.arg_names}
        aligned = [name for name in used if name != "weight"]
        found.append(compile_kernel(kernel, used, constants, aligned, warps=warps, capability=capability))
    return found


def decode_cost(state: SlotState, groups: int, *, rule: Rule = "max", parts: int | None = None) -> LaunchCost:
    """Bytes and operations of one launch of the decode kernel over full slots; counted, not measured.

    Keys, values, positions and importance count once from HBM. What splits hand on (logits, partial sums) is written
    and read again as soon as the head is done; it counts too, though most of it stays in the second-level cache.

    Args:
        state: for its sizes.
        groups: G.
        rule: of importance; ``none`` keeps no logits.
        parts: splits; None for what :func:`budgetctl.kernels.kv_decode.splits` says.
    """
    batch, heads = state.cursor.shape
    pairs, slots = batch * heads, batch * state.offsets[-1]
    size, value_size, item = state.keys.shape[2], state.values.shape[2], state.keys.element_size()
    if parts is None:
        parts = splits(batch, heads, state.widest)
    slot = item * (size + value_size) + 4  # key, value, position
    if rule != "none":
        slot += 8 + 8 * groups  # importance and logits, each read and written
    new = item * (size + value_size) * 2 + 4 * 3  # key and value read and written; position, importance, norm
    query = item * groups * (size + value_size)  # query and output
    between = 8 * groups * (value_size + 2) * parts if parts > 1 else 0
    rows = int(launch_options(state, groups, rule=rule, group="max")["BLOCK_G"])
    operations = 2 * rows * (size + value_size) * slots
    narrow = item == 2
    return LaunchCost(
        pairs * parts,
        slots * slot + pairs * (new + query + between + 20),
        0 if narrow else operations,
        operations if narrow else 0,
    )


def victims_cost(states: int, state: SlotState, count: int, *, prior: bool = True) -> LaunchCost:
    """Bytes of one launch of the victims kernel for that many states like ``state``; counted, not measured.

    Each byte counts once from HBM: heads that are read several times stay in a multiprocessor's cache.

    Args:
        states: layers.
        state: for its sizes.
        count: W.
        prior: with the guarded score.
    """
    batch, heads = state.cursor.shape
    programs = states * batch * heads
    slot = 4 + 4 + (4 if prior else 0)  # position, importance, norm
    head = 4 * count + 4 * 4 + 2 * 8  # queue; cursor, length, prompt, answer; first slot and size
    table = 8 * len(kv_victims.COLUMNS)
    return LaunchCost(programs, states * (batch * state.offsets[-1] * slot + table) + programs * head, 0)


def novelty_cost(states: int, state: SlotState, *, importance: bool = True) -> LaunchCost:
    """Bytes of the novelty launches for that many states like ``state``; counted, not measured. Each key counts twice.

    Args:
        states: layers.
        state: for its sizes.
        importance: with the score that the default policy makes of it, and the norms of values.
    """
    batch, heads = state.cursor.shape
    pairs, slots = states * batch * heads, states * batch * state.offsets[-1]
    size = state.keys.shape[2]
    parts = kv_novelty.parts_of(pairs, state.widest)
    slot = 2 * size * state.keys.element_size() + 4 + 4  # keys twice; position, novelty written
    if importance:
        slot += 4 + 2 * (4 + 4) + 4 + 4  # norm; importance and novelty twice; position, score
    return LaunchCost(pairs * parts, slots * slot + 8 * pairs * parts * size, 0)
