"""What the layers of a cache share: working memory of the decode step, and the choice of victims in one go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from budgetctl.kernels.host_reads import may_look
from budgetctl.kernels.kv_decode_cpu import StepScratch, is_full
from budgetctl.kernels.kv_scratch import KVScratch
from budgetctl.kernels.kv_state import SlotState
from budgetctl.kernels.kv_victims import VictimTable, refill
from budgetctl.kv.answer import bound_answer, check_room
from budgetctl.kv.late import settle_together, take

if TYPE_CHECKING:
    from budgetctl.kv.slots import Slots


class Shared:
    """Of the layers of one cache, whose steps follow each other."""

    def __init__(self) -> None:
        self.layers: Sequence[Slots] = ()
        self.steps = StepScratch()
        self._scratch: KVScratch | None = None
        self._table: VictimTable | None = None
        self._mask: torch.Tensor | None = None
        self._all_real = False

    def all_real(self, mask: torch.Tensor) -> bool:
        """Whether a step's mask [B, 1, 1, 1] bool hides nothing; False where the host would have to wait for the answer.

        The layers of a step get the same mask, so that it is looked at once.
        """
        if not may_look(mask.device):
            return False
        if mask is not self._mask:
            self._mask, self._all_real = mask, bool(mask.all())
        return self._all_real

    def scratch(self, state: SlotState, groups: int) -> KVScratch | None:
        """Working memory that is enough for a step of ``state``; None where no kernel runs."""
        if not state.keys.is_cuda:
            return None
        if self._scratch is None or not self._scratch.fits(state, groups):
            self._scratch = KVScratch.allocate([state], groups)
        return self._scratch

    def refill(self, layer: Slots, groups: int | None = None) -> None:
        """Name the next victims of every head of ``layer``, and of all layers that it shares memory or a GPU with and that
        have none left either.

        A layer's victims depend on that layer alone, so it does not matter when in a step they are named.

        Args:
            layer: whose queue is spent.
            groups: query heads of a key-value head, for :func:`budgetctl.kv.late.take`; None for plain steps.
        """
        stack = layer.stack if layer.stack is not None and layer.stack.together else None
        together: Sequence[Slots] = [layer]
        if stack is not None:
            together = stack.layers
            settle_together(together, stack.state)
        state = layer.state
        assert state is not None
        if state.keys.is_cuda:
            together = [
                other
                for other in self.layers
                if other.state is not None
                and other.queued == 0
                and other.cumulative_length == layer.cumulative_length
                and other.state.keys.device == state.keys.device
            ]
        whole = state if stack is None else stack.state
        whole.full = full = may_look(state.keys.device) and whole.uniform and is_full(whole)
        try:
            refill_layers(together, self._table_of(together), None if stack is None else [whole])
        finally:
            whole.full = False
        if groups is not None:
            take(together, whole, groups, full)

    def _table_of(self, layers: Sequence[Slots]) -> VictimTable | None:
        states = [layer.state for layer in layers if layer.state is not None]
        if not states[0].keys.is_cuda:
            return None
        if self._table is None or not self._table.describes(states):
            self._table = VictimTable.of(states)
        return self._table


def refill_layers(
    layers: Sequence[Slots],
    table: VictimTable | None = None,
    states: Sequence[SlotState] | None = None,
) -> None:
    """Name the next victims of every head of layers that have seen as many tokens.

    Args:
        layers: of one policy, protection and queue.
        table: of their states.
        states: with the rows of all layers; None for one state a layer.

    Raises:
        CacheError: when an answer has filled the cache and must not be evicted from.
    """
    first = layers[0]
    policy, count = first.policy, first.interval
    own = [layer.state for layer in layers if layer.state is not None]
    for layer, state in zip(layers, own, strict=True):
        if layer.answer_from is None:
            continue
        if layer.answer_overflow == "evict":
            bound_answer(state, layer.protection, count=count)
        else:
            written = layer.cumulative_length - layer.answer_from
            check_room(state, layer.protection, written=written, count=count, heads=layer.row_heads)
    states = states or own
    reach = first.cumulative_length + count
    width = min(max(state.widest for state in states), reach)
    # While every head has empty slots within reach no score is asked for.
    full = reach > min(min(layer.capacities) for layer in layers)
    guard = policy.guard if full else None
    scores = None
    if full and guard is None and not policy.plain:
        scores = policy.scores_of(states, width, table)
    refill(states, first.protection, count=count, prior=guard, scores=scores, width=width, table=table)
    for layer in layers:
        layer.queued, layer.late.in_sequence = layer.interval, False
