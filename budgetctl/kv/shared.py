"""What the layers of a cache share: working memory of the decode kernel, and the choice of victims in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from budgetctl.kernels.kv_scratch import KVScratch
from budgetctl.kernels.kv_state import SlotState
from budgetctl.kernels.kv_victims import VictimTable, refill
from budgetctl.kv.answer import bound_answer, check_room

if TYPE_CHECKING:
    from budgetctl.kv.layer import BudgetLayer


class Shared:
    """Of the layers of one cache, whose steps follow each other."""

    def __init__(self) -> None:
        self.layers: Sequence[BudgetLayer] = ()
        self._scratch: KVScratch | None = None
        self._table: VictimTable | None = None

    def scratch(self, state: SlotState, groups: int) -> KVScratch | None:
        """Working memory that is enough for a step of ``state``; None where no kernel runs."""
        if not state.keys.is_cuda:
            return None
        if self._scratch is None or not self._scratch.fits(state, groups):
            self._scratch = KVScratch.allocate([state], groups)
        return self._scratch

    def refill(self, layer: BudgetLayer) -> None:
        """Name the next victims of every head of ``layer``, and on a GPU of all layers that have none left either.

        A layer's victims depend on that layer alone, so it does not matter when in a step they are named.
        """
        assert layer.state is not None
        together = [layer]
        if layer.state.keys.is_cuda:
            together = [
                other
                for other in self.layers
                if other.state is not None
                and other.queued == 0
                and other.cumulative_length == layer.cumulative_length
                and other.state.keys.device == layer.state.keys.device
            ]
        refill_layers(together, self._table_of(together))

    def _table_of(self, layers: Sequence[BudgetLayer]) -> VictimTable | None:
        states = [layer.state for layer in layers if layer.state is not None]
        if not states[0].keys.is_cuda:
            return None
        if self._table is None or not self._table.describes(states):
            self._table = VictimTable.of(states)
        return self._table


def refill_layers(layers: Sequence[BudgetLayer], table: VictimTable | None = None) -> None:
    """Name the next victims of every head of layers that have seen as many tokens.

    Args:
        layers: of one policy, protection and queue.
        table: of their states.

    Raises:
        CacheError: when an answer has filled the cache and must not be evicted from.
    """
    first = layers[0]
    policy, count = first.policy, first.interval
    states = [layer.state for layer in layers if layer.state is not None]
    for layer, state in zip(layers, states, strict=True):
        if layer.answer_from is None:
            continue
        if layer.answer_overflow == "evict":
            bound_answer(state, layer.protection, count=count)
        else:
            written = layer.cumulative_length - layer.answer_from
            check_room(state, layer.protection, written=written, count=count, heads=layer.row_heads)
    reach = first.cumulative_length + count
    width = min(max(state.widest for state in states), reach)
    # While every head has empty slots within reach no score is asked for.
    full = reach > min(min(layer.capacities) for layer in layers)
    guard = policy.guard if full else None
    scores = None
    if full and guard is None and not policy.plain:
        scores = [policy.scores(state, min(width, state.widest)) for state in states]
    refill(states, first.protection, count=count, prior=guard, scores=scores, width=width, table=table)
    for layer in layers:
        layer.queued = layer.interval
