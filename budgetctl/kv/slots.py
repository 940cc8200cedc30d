"""What a layer of a :class:`~budgetctl.kv.cache.BudgetCache` holds: its slots, and the numbers that go with them."""

from __future__ import annotations

import torch

from budgetctl.errors import CacheError
from budgetctl.kernels.kv_reference import pick_victims
from budgetctl.kernels.kv_state import Protection, SlotState
from budgetctl.kv.answer import make_room
from budgetctl.kv.late import Late
from budgetctl.kv.policies import Policy
from budgetctl.kv.resize import resized
from budgetctl.kv.rows import Rows
from budgetctl.kv.shared import Shared
from budgetctl.kv.stack import Stack, allocate


class Slots(Rows):
    """Slots of one layer, without the steps that fill them (:class:`~budgetctl.kv.layer.BudgetLayer`).

    Args:
        capacities: slots of each key-value head; with ``rows`` of each head of each row, the rows one after the other.
        policy: with its interval set.
        protection: of positions.
        rows: rows of the batch where they have capacities of their own: then the state has a single row, and the heads
            of all rows are heads of it. None where all rows have the same.
        answer_overflow: ``raise`` or ``evict``, when an answer is longer than the slots.
        evicted: whether the importance of what is overwritten is summed up.
        shared: with the other layers of the cache.
    """

    is_compileable = False
    is_croppable = False  # what a query did to importance stays
    is_sliding = False
    supports_early_init = False

    def __init__(
        self,
        capacities: tuple[int, ...],
        policy: Policy,
        protection: Protection,
        *,
        rows: int | None = None,
        answer_overflow: str = "raise",
        evicted: bool = False,
        shared: Shared | None = None,
    ) -> None:
        super().__init__()
        assert policy.interval is not None
        self.capacities, self.policy, self.protection = capacities, policy, protection
        self.interval = policy.interval
        self.rows, self.answer_overflow, self.sums_evicted = rows, answer_overflow, evicted
        self.shared = shared or Shared()
        self._state: SlotState | None = None
        self.stack: Stack | None = None
        self.late = Late()
        self.reset()

    @property
    def state(self) -> SlotState | None:
        """The slots, all steps done; None before the first token."""
        self.late.settle(self, self._state)
        return self._state

    @state.setter
    def state(self, state: SlotState | None) -> None:
        if self._state is not None and state is not self._state:
            self.stack, self.late.steps = None, None
        self._state = state

    def reset(self) -> None:
        """Forget every token; the memory stays."""
        self.late = Late()
        self.cumulative_length = 0  # columns of the batch that have been seen, padding included
        self.evicted_at = 0  # columns after which a token may have been evicted; 0 for none
        self.queued = 0  # entries of the queue that are left
        self.generating = False
        self.prompt_before: torch.Tensor | None = None
        self.answer_from: int | None = None  # columns at the first answer's begin
        self.waiting = False
        if self.state is not None:
            self.state.clear()

    @property
    def batch(self) -> int:
        """Rows; -1 before the first token."""
        if self._state is None:
            return -1
        return self._state.keys.shape[0] if self.rows is None else self.rows

    @property
    def row_heads(self) -> int:
        """Key-value heads of a row."""
        return len(self.capacities) // (self.rows or 1)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        batch, heads, _, size = key_states.shape
        if heads != self.row_heads:
            raise CacheError(
                f"the layer has {heads} key-value heads: expected {self.row_heads}, as the configuration says; "
                "make the cache from the configuration of this model"
            )
        self.check_batch(batch, self.rows)
        self.state = allocate(
            self,
            self.shared.layers,
            batch if self.rows is None else 1,
            size,
            value_states.shape[3],
            dtype=key_states.dtype,
            device=key_states.device,
        )
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def check_batch(self, came: int, expected: int | None) -> None:
        if expected is not None and came != expected:
            raise CacheError(
                f"the batch has {came} rows: expected {expected}, as before; take a new BudgetCache for another batch"
            )

    def by_head(self, rows: torch.Tensor) -> torch.Tensor:
        """What is true of rows [B, ...], by head of the state [B, H, ...] (with ``rows``: [1, B H, ...])."""
        if self.rows is None:
            return rows[:, None].expand(-1, self.row_heads, *rows.shape[1:])
        return rows.repeat_interleave(self.row_heads, 0)[None]

    def by_row(self, heads: torch.Tensor) -> torch.Tensor:
        """[B, H, ...] of what the state has by head."""
        return heads if self.rows is None else heads[0].unflatten(0, (self.rows, self.row_heads))

    def seen(self, count: int) -> None:
        """Count ``count`` more columns."""
        self.cumulative_length += count
        if self.cumulative_length > min(self.capacities):
            self.evicted_at = self.cumulative_length

    def begin_answer(self, rows: torch.Tensor, reserve: int, written: torch.Tensor | None = None) -> None:
        """Protect what rows write from here on, and free slots for it at once.

        The lowest ``reserve`` unprotected tokens go, less the slots that are empty anyway.

        Args:
            rows: [B] bool.
            reserve: tokens of the answer, as far as known; more find room as usual.
            written: [B] tokens of the answer that the cache has already; None for none.
        """
        if self.state is None:
            raise CacheError(
                "begin_answer before the prompt: expected some tokens in the cache; generate first"
            )
        state, by_head = self.state, self.by_head(rows)
        start = state.lengths if written is None else state.lengths - self.by_head(written).int()
        begun = torch.minimum(state.answers, start)
        state.answers.copy_(begun.where(by_head, state.answers))
        if self.answer_from is None:
            self.answer_from = self.cumulative_length
        make_room(state, by_head, reserve, self.policy.scores(state), self.protection)
        self.evicted_at = self.cumulative_length
        self.late.in_order = False
        if self.queued:
            # Other rows keep the victims that they have been given.
            at = self.interval - self.queued
            fresh = pick_victims(state, self.policy.scores(state), self.protection, count=self.queued)
            state.queue[:, :, at:] = torch.where(by_head[:, :, None], fresh, state.queue[:, :, at:])

    def resize(self, capacities: tuple[int, ...]) -> None:
        """Give the heads other capacities, in one copy; where there are fewer slots, the policy's lowest go.

        Args:
            capacities: as many as before.
        """
        if capacities == self.capacities:
            return
        if self.state is not None:
            held = min(self.cumulative_length, self.state.widest)
            if min(capacities) < held:
                self.evicted_at = self.cumulative_length
            self.state = resized(self.state, capacities, self.policy.scores(self.state), self.protection)
            self.late.in_order = False
        self.capacities, self.queued = capacities, 0

    def get_seq_length(self) -> int:
        """Columns seen so far, padding and evicted tokens included: the logical length."""
        return self.cumulative_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The mask covers the new tokens alone; which slots are seen is the layer's business."""
        return query_length, self.cumulative_length

    def get_max_length(self) -> int:
        """-1: a sequence may be of any length."""
        return -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.20
