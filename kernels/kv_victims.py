"""The slots that the next tokens take, for all layers at once: one Triton launch on CUDA, plain PyTorch elsewhere.

Same meaning as :func:`budgetctl.kernels.kv_reference.pick_victims` for one layer after the other, which is also taken on
CUDA for what the kernel does not do (float64, no Triton). The launch reads nothing back and has no shape that depends on
data: with a :class:`VictimTable` made before, it can stand in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from budgetctl.errors import KernelError
from budgetctl.kernels import kv_reference
from budgetctl.kernels.gamma_guidance import has_triton
from budgetctl.kernels.kv_state import Protection, SlotState

__all__ = ["VictimTable", "launch_options", "refill"]

#: Most slots of a head whose ranks a program keeps in registers, and slots that it looks at at a time beyond that.
MOST_WHOLE, BLOCK = 8192, 4096
#: Columns of a :class:`VictimTable`: addresses of these tensors of a state, and S.
COLUMNS = (
    "importance",
    "value_norms",
    "positions",
    "queue",
    "cursor",
    "lengths",
    "prompts",
    "answers",
    "first",
    "sizes",
    "keys",
    "slots",
)


@dataclass(frozen=True)
class VictimTable:
    """Where the tensors of a set of states are, on their device: made once, as the tensors never move.

    Args:
        states: one a layer; kept, so that their memory is.
        entries: [layers, 12] int64 on the device, addresses and S.
        known: the same on the host.
    """

    states: tuple[SlotState, ...]
    entries: torch.Tensor
    known: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, states: Sequence[SlotState]) -> VictimTable:
        """The table of these states; copies it to the device.

        Raises:
            KernelError: when there is no state, or they differ in device, rows, heads or queue.
        """
        check_states(states)
        known = tuple(_entry(state) for state in states)
        entries = torch.tensor(known, dtype=torch.int64, device=states[0].keys.device)
        return cls(tuple(states), entries, known)

    def describes(self, states: Sequence[SlotState]) -> bool:
        """Whether the tensors of these states are where the table says."""
        return len(states) == len(self.known) and all(map(_is_at, states, self.known))


def refill(
    states: Sequence[SlotState],
    protection: Protection,
    *,
    count: int,
    prior: float | None = None,
    scores: Sequence[torch.Tensor] | torch.Tensor | None = None,
    width: int | None = None,
    table: VictimTable | None = None,
) -> None:
    """Name the next ``count`` victims of every head of every state. Writes ``queue`` and ``cursor``, nothing else.

    Empty slots first, in their order; then the lowest scores, the oldest of equal ones first; protected slots only
    after all others. The victims are the last ``count`` entries of the queue, and the cursor comes to stand at the first
    of them: at 0 where ``count`` is W.

    Args:
        states: one a layer, of the same B, H and W on one device; capacities may differ.
        protection: of positions.
        count: at most W, the smallest capacity, and ``width``.
        prior: take :func:`budgetctl.kernels.kv_reference.guarded` of this prior as the score, at least 0; None for the
            importance itself. (The kernel adds up in another order than PyTorch, so that scores within rounding of each
            other may change places.)
        scores: instead of both, of each state [B, H, w] floating point, w as of ``width`` (or all in one tensor [layers, B,
            H, w]); NaN counts as the highest.
        width: look at the first ``width`` columns of each head only; None for all.
        table: of these states; None makes it, at the price of a copy to the device that the host waits for.

    Raises:
        KernelError: for states that do not go together, a count that is too large, a prior without norms of values,
            scores of another shape, or a table of other states.
    """
    _check(states, count, prior, scores, width, table)
    if states[0].keys.is_cuda and _has_kernel(states, scores):
        _launch(states, protection, count, prior, scores, width, table)
        return
    for i, state in enumerate(states):
        worth = None if scores is None else scores[i]
        if prior is not None:
            worth = kv_reference.guarded(state, width, prior)
        found = kv_reference.pick_victims(state, worth, protection, count=count, width=width)
        start = state.queue.shape[2] - count
        state.queue[:, :, start:] = found
        state.cursor.fill_(start)


def launch_options(widest: int, block: int | None = None) -> dict[str, int | bool]:
    """The kernel's constants that depend on the slots of the widest head of any layer; ``num_warps`` is among them."""
    if block is None:
        block = max(_power_of_two(widest), 128) if widest <= MOST_WHOLE else BLOCK
    return {"BLOCK": block, "WHOLE": widest <= block, "num_warps": min(max(block // 512, 4), 16)}


def check_states(states: Sequence[SlotState]) -> None:
    """Raise :class:`KernelError` unless there are states, of one device, B, H and W."""
    if not states:
        raise KernelError("no states: expected one a layer")
    for i, state in enumerate(states):
        if state.queue.shape != states[0].queue.shape or state.queue.device != states[0].queue.device:
            raise KernelError(
                f"the queue of state {i} is {tuple(state.queue.shape)} on {state.queue.device}: expected "
                f"{tuple(states[0].queue.shape)} on {states[0].queue.device}, as that of state 0; refill unlike states apart"
            )


def _launch(
    states: Sequence[SlotState],
    protection: Protection,
    count: int,
    prior: float | None,
    scores: Sequence[torch.Tensor] | torch.Tensor | None,
    width: int | None,
    table: VictimTable | None,
    *,
    block: int | None = None,
) -> None:
    """The same by the Triton kernel, on any device that it runs on."""
    from budgetctl.kernels.kv_victims_triton import kv_victims_kernel

    if table is None:
        table = VictimTable.of(states)
    batch, heads, interval = states[0].queue.shape
    widest = max(state.widest for state in states)
    stacked = None if scores is None else _stacked(scores)
    device = table.entries.device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kv_victims_kernel[(len(states) * batch * heads,)](
            table.entries,
            stacked,
            *((0, 0, 0) if stacked is None else stacked.stride()[:3]),
            batch * heads,
            widest if width is None else min(width, widest),
            protection.sinks,
            protection.recent,
            float(protection.prompt_share),
            0.0 if prior is None else float(prior),
            HEADS=heads,
            QUEUE=interval,
            COUNT=count,
            GUARDED=prior is not None,
            **launch_options(widest, block),
        )


def _stacked(scores: Sequence[torch.Tensor] | torch.Tensor) -> torch.Tensor:
    """[layers, B, H, w] of scores by layer, the narrower ones filled up."""
    if isinstance(scores, torch.Tensor):
        return scores
    widest = max(each.shape[2] for each in scores)
    return torch.stack(
        [
            each if each.shape[2] == widest else torch.nn.functional.pad(each, (0, widest - each.shape[2]))
            for each in scores
        ]
    )


def _has_kernel(states: Sequence[SlotState], scores: Sequence[torch.Tensor] | torch.Tensor | None) -> bool:
    return (
        has_triton()
        and all(state.importance.dtype == torch.float32 for state in states)
        and all(state.contiguous for state in states)
        and (scores is None or all(each.dtype == torch.float32 for each in scores))
    )


def _tensors(state: SlotState) -> tuple[torch.Tensor | None, ...]:
    return tuple(getattr(state, name) for name in COLUMNS[:-1])


def _entry(state: SlotState) -> tuple[int, ...]:
    """A line of the table: 0 for what the state does not have, and S at the end."""
    addresses = (0 if tensor is None else tensor.data_ptr() for tensor in _tensors(state))
    return (*addresses, state.offsets[-1])


def _is_at(state: SlotState, known: tuple[int, ...]) -> bool:
    return _entry(state) == known


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _check(
    states: Sequence[SlotState],
    count: int,
    prior: float | None,
    scores: Sequence[torch.Tensor] | torch.Tensor | None,
    width: int | None,
    table: VictimTable | None,
) -> None:
    check_states(states)
    batch, heads, interval = states[0].queue.shape
    most = min(interval, *(min(state.capacities) for state in states))
    most = most if width is None else min(most, width)
    if not 1 <= count <= most:
        raise KernelError(
            f"count={count}: expected 1 to {most}, the least of the queue's {interval} entries, the capacities and the width"
        )
    if prior is not None and (scores is not None or not 0 <= prior < float("inf")):
        raise KernelError(
            f"prior={prior}{' beside scores' if scores is not None else ''}: expected a number of at least 0, and either "
            "of the two"
        )
    if prior is not None and any(state.value_norms is None for state in states):
        raise KernelError(
            f"prior={prior} for states without norms of values: expected SlotState.allocate(value_norms=True); or leave it out"
        )
    if scores is not None:
        shapes = [tuple(each.shape) for each in scores]
        wanted = [
            (batch, heads, state.widest if width is None else min(width, state.widest)) for state in states
        ]
        if shapes != wanted:
            raise KernelError(f"scores have shapes {shapes}: expected {wanted}, one of each state")
    if table is not None and not table.describes(states):
        raise KernelError(
            "the table is of other states, or their tensors moved: expected VictimTable.of(states)"
        )
