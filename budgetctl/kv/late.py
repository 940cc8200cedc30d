"""Decode steps of a layer on the CPU that leave for later what nobody reads yet.

While tokens stand in order and there is room, a step is SDPA over the columns in use, and importance is made up for from
the kept queries (:mod:`budgetctl.kv.roomy`). Beyond, steps take the slots that the queue names, and positions, lengths and
norms are made up for when the queue is spent (:mod:`budgetctl.kernels.kv_decode_cpu`). Whoever looks at the state finds
it as plain steps leave it, but for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from budgetctl.kernels.host_reads import may_look
from budgetctl.kernels.kv_decode_cpu import QueuedSteps, entries_of, is_full, settle
from budgetctl.kernels.kv_state import SlotState
from budgetctl.kv import roomy

if TYPE_CHECKING:
    from budgetctl.kv.layer import BudgetLayer
    from budgetctl.kv.slots import Slots


class Late:
    """Of a layer: whether its next step is one of these, and what of such steps is still to be done."""

    def __init__(self) -> None:
        self.queries: list[torch.Tensor] = []  # of steps with room
        self.scale = 1.0
        self.in_order = True  # whether token i of each row is in column i of each head
        self.in_sequence = False  # whether the queue names the columns that follow
        self.steps: QueuedSteps | None = None
        self.at_hand = False  # whether ``steps`` has the entries of the queue

    def saw(self, real: torch.Tensor) -> None:
        """Note which new tokens [...] bool are no padding."""
        self.in_order = self.in_order and may_look(real.device) and bool(real.all())

    def step(
        self,
        layer: BudgetLayer,
        state: SlotState | None,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
    ) -> torch.Tensor | None:
        """One step of ``layer``, of no padding; None where it has to be a plain one.

        Args:
            layer: whose step it is.
            state: its own, behind.
            module: of the model.
            query: [B, G H, 1, D].
            key: [B, H, 1, D].
            value: [B, H, 1, E].
            scale: factor of the logits.

        Returns:
            [B, 1, G H, E].
        """
        if not may_look(query.device):
            return None
        if self.at_hand and layer.queued:
            return self._queued(layer, query, key, value, scale)
        if state is None or not layer.cumulative_length or layer.rows is not None or not state.uniform:
            return None
        if self._has_room(layer, state, scale):
            return self._roomy(layer, state, module, query, key, value, scale)
        return self._queued(layer, query, key, value, scale)

    def settle(self, layer: Slots, state: SlotState | None) -> None:
        """Do what is behind."""
        if self.queries and state is not None:
            queries, self.queries = self.queries, []
            end, ahead = layer.cumulative_length, layer.queued
            roomy.catch_up(state, queries, layer.policy, end=end, ahead=ahead, scale=self.scale)
        if self.at_hand and self.steps is not None:
            # Whoever looks may also write, to the queue or to the positions.
            self.at_hand = False
            with roomy.writing(self.steps.state):
                settle(self.steps.state, taken=self.steps.taken, done=self.steps.done)

    def _has_room(self, layer: BudgetLayer, state: SlotState, scale: float) -> bool:
        if not self.in_order or layer.policy.window is not None or (self.queries and scale != self.scale):
            return False
        # Victims are named at the same steps as ever, whichever way the steps between are done.
        return self.in_sequence if layer.queued else layer.cumulative_length + layer.interval <= state.widest

    def _roomy(
        self,
        layer: BudgetLayer,
        state: SlotState,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        if len(self.queries) == roomy.MOST_BEHIND:
            self.settle(layer, state)
        if not layer.queued:
            layer.queued, self.in_sequence = layer.interval, True
        output = roomy.step(module, query, key, value, state, column=layer.cumulative_length, scale=scale)
        layer.generating, self.scale = True, scale
        self.queries.append(query)
        layer.seen(1)
        layer.queued -= 1
        return output

    def _queued(
        self,
        layer: BudgetLayer,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        layer.generating = True
        if not (self.at_hand and layer.queued):
            groups = query.shape[1] // key.shape[1]
            if not layer.queued:
                layer.shared.refill(layer, groups)
            if not self.at_hand:
                assert layer.state is not None
                take([layer], layer.state, groups, is_full(layer.state))
        steps, policy = self.steps, layer.policy
        assert steps is not None
        rule = layer.rule_of_step(steps.state)
        layer.seen(1)
        layer.queued -= 1
        output = steps.step(
            query, key, value, scale=scale, rule=rule, decay=policy.fading, group=policy.group
        )
        return output.view(query.shape[0], 1, query.shape[1], -1)


def take(layers: Sequence[Slots], state: SlotState, groups: int, full: bool) -> None:
    """Bring the entries of the queue that are left to the steps of some layers.

    Args:
        layers: that have seen as many tokens.
        state: of all of them, their rows one after the other.
        groups: query heads that share a key-value head.
        full: whether no slot is empty.
    """
    first = layers[0]
    taken, width = first.interval - first.queued, first.cumulative_length + first.queued
    for layer, entries in zip(
        layers, entries_of(state, len(layers), taken=taken, width=width, full=full), strict=True
    ):
        late, own = layer.late, layer.state
        assert own is not None
        if late.steps is None or late.steps.state is not own:
            late.steps = QueuedSteps(own, groups, layer.shared.steps)
        late.steps.take(entries, taken=taken, width=width)
        late.at_hand = True


def settle_together(layers: Sequence[Slots], state: SlotState) -> None:
    """Do what is behind in some layers, at once where they have taken equal steps.

    Args:
        layers: whose queues are spent.
        state: of all of them.
    """
    behind = {
        (layer.late.steps.taken, layer.late.steps.done)
        for layer in layers
        if layer.late.at_hand and layer.late.steps is not None
    }
    if len(behind) == 1 and all(layer.late.at_hand for layer in layers):
        ((taken, done),) = behind
        for layer in layers:
            layer.late.at_hand = False
        with roomy.writing(state):
            settle(state, taken=taken, done=done)
