"""Thinking budget and KV budget, coupled both ways while a generation runs.

What the controller knows goes to the cache: how long each row will be (slots of a pool go where they are needed, and
nothing is evicted where all will fit) and where each thought has ended (room for the answer, whose tokens stay). What
the cache knows goes to the controller: a thought whose evicted tokens had had too much attention is told to finish,
because thoughts lose their way in too small a cache, and then grow longer.

All of it happens every few tokens, at lengths that are the same for every row of a batch. Between them nothing is
looked at; at them the host waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from budgetctl.budget import NO_CAP
from budgetctl.errors import CacheError
from budgetctl.kv.budget import KVBudget, Pool, RowNeed, plan_cache
from budgetctl.kv.cache import BudgetCache
from budgetctl.kv.policies import Policy
from budgetctl.limits import RowTensors
from budgetctl.predicted_caps import ForecastOfStep
from budgetctl.state import ThinkingState

if TYPE_CHECKING:
    from budgetctl.controller import BudgetController

#: Most tokens from one look at the rows to the next, and from one sharing out of a pool to the next.
LOOK_EVERY, SHARE_EVERY = 16, 256
#: A share that changes by less than this part stays: a copy costs more than it brings.
WORTH_A_COPY = 0.1
#: Of its slots, the part that is freed for a row's answer at once; further room is found as it is needed.
ANSWER_ROOM = 0.125
#: A crowded thought may go on for this part of its length, and at least so many tokens.
FINISH_SHARE, FINISH_TOKENS = 0.25, 16


class KVCoupling:
    """Between the controller and the cache of one generation; the controller calls :meth:`observe`.

    Args:
        cache: of the generation.
        prompt_length: padded width of the prompt.
        max_new_tokens: of the generation.
        pool: slots that the rows share; None where each has its own for good.
        max_loss: evicted attention (``BudgetCache.evicted_mass``) beyond which a thought is told to finish; None for any.
    """

    def __init__(
        self,
        cache: BudgetCache,
        prompt_length: int,
        max_new_tokens: int,
        *,
        pool: Pool | None = None,
        max_loss: float | None = None,
    ) -> None:
        self.cache, self.prompt_length, self.max_new_tokens = cache, prompt_length, max_new_tokens
        self.pool, self.max_loss = pool, max_loss
        # The first tokens of an answer are among the latest until it is seen to have begun.
        self.every = max(1, min(LOOK_EVERY, cache.protection.recent))
        self._share_every = SHARE_EVERY // self.every * self.every
        #: [B] int64 tokens, thinking budgets of crowded thoughts, ``NO_CAP`` for others; None while there is none.
        self.caps: torch.Tensor | None = None

    def due(self, width: int) -> bool:
        """Whether rows of ``width`` tokens are looked at."""
        generated = width - self.prompt_length
        return generated >= 0 and generated % self.every == 0 and self.cache.get_seq_length() == width

    def observe(
        self,
        width: int,
        state: ThinkingState,
        caps: torch.Tensor,
        limits: RowTensors,
        forecast: ForecastOfStep | None,
    ) -> torch.Tensor:
        """Look at the rows, if it is time to.

        Args:
            width: T, tokens of the rows; the cache holds all of them.
            state: of the rows.
            caps: [B] int64, their thinking budgets in tokens.
            limits: of the rows.
            forecast: of what follows.

        Returns:
            [B] int64 thinking budgets, smaller for crowded thoughts.
        """
        if self.due(width):
            generated = width - self.prompt_length
            if self.pool is not None and generated % self._share_every == 0:
                self._share(self.pool, state, caps, limits, forecast)
            self._begin_answers(state)
            if self.max_loss is not None and generated:
                self._finish_crowded(state, self.max_loss)
        return caps if self.caps is None else torch.minimum(caps, self.caps)

    def _begin_answers(self, state: ThinkingState) -> None:
        """Protect answers that have begun since the last look, and free some room for them."""
        due = state.closed & ~self.cache.in_answer().to(state.closed.device)
        if bool(due.any()):
            smallest = min(map(min, self.cache.capacities))
            room = max(self.cache.layers[0].interval, int(ANSWER_ROOM * smallest))
            self.cache.begin_answer(due, room, state.answer_tokens)

    def _share(
        self,
        pool: Pool,
        state: ThinkingState,
        caps: torch.Tensor,
        limits: RowTensors,
        forecast: ForecastOfStep | None,
    ) -> None:
        """Share the pool out anew: by what the rows will need, and the more to those that lose more."""
        before, layer = self.cache.row_capacities, self.cache.layers[0]
        assert before is not None
        assert layer.state is not None
        left = torch.minimum(caps - state.used, limits.room - state.generated).clamp(min=0)
        if forecast is not None:
            left = torch.minimum(left, forecast.natural_length().ceil().long())
        reserve = self.max_new_tokens - limits.room
        # An answer that has outgrown its reserve is taken to be half-way.
        answer = torch.maximum(reserve - state.answer_tokens, state.answer_tokens)
        ahead = torch.where(state.thinking, left + reserve, answer).clamp(min=0)
        ahead = torch.minimum(ahead, self.max_new_tokens - state.generated)
        seen = layer.by_row(layer.state.lengths)[:, 0].to(ahead.device)
        needs = torch.where(state.finished, 0, seen + ahead)
        mass = self.cache.evicted_mass().to(ahead.device)
        weights = 1 + mass / mass.mean().clamp(min=torch.finfo(mass.dtype).tiny)
        shares = pool.shares(needs.tolist(), weights.tolist())
        if any(abs(new - old) > WORTH_A_COPY * old for new, old in zip(shares, before, strict=True)):
            self.cache.resize(shares)

    def _finish_crowded(self, state: ThinkingState, max_loss: float) -> None:
        """Give thoughts that have lost too much a last part of their length to finish in."""
        caps = torch.full_like(state.used, NO_CAP) if self.caps is None else self.caps
        crowded = state.thinking & (self.cache.evicted_mass().to(caps.device) > max_loss) & (caps == NO_CAP)
        grace = (state.used * FINISH_SHARE).long().clamp(min=FINISH_TOKENS)
        self.caps = torch.where(crowded, state.used + grace, caps)


def couple(
    controller: BudgetController,
    config: Any,
    budget: KVBudget,
    *,
    prompts: Sequence[int],
    prompt_length: int,
    max_new_tokens: int,
    dtype: torch.dtype,
    policy: Policy | str | None = None,
    movable: bool = False,
    max_loss: float | None = None,
) -> BudgetCache:
    """A cache for one generation, coupled with its controller.

    Args:
        controller: of the generation.
        config: of the model.
        budget: what may be held.
        prompts: tokens of each row's prompt, padding not counted.
        prompt_length: padded width of the prompts.
        max_new_tokens: of the generation.
        dtype: of keys and values.
        policy: what to give up.
        movable: rows will change places, as beams do.
        max_loss: as :class:`KVCoupling` has it.

    Raises:
        CacheError: for a model that this cannot be, or values that are impossible.
    """
    check_max_loss(max_loss)
    if max_loss is not None and movable:
        raise CacheError(
            "kv_max_loss with beams: expected rows that keep their places; do without one of the two"
        )
    limits = controller.limits.on(len(prompts), torch.device("cpu"))
    thoughts = torch.minimum(limits.caps, limits.room).tolist()
    needs = [
        RowNeed(
            prompt=prompt,
            planned=prompt + min(thought + max_new_tokens - room, max_new_tokens),
            most=prompt + max_new_tokens,
        )
        for prompt, thought, room in zip(prompts, thoughts, limits.room.tolist(), strict=True)
    ]
    cache, pool = plan_cache(config, budget, needs, dtype, policy, movable=movable)
    controller.kv = KVCoupling(cache, prompt_length, max_new_tokens, pool=pool, max_loss=max_loss)
    return cache


def check_max_loss(max_loss: float | None) -> None:
    """Raise unless ``max_loss`` is a number above 0, or None."""
    number = isinstance(max_loss, int | float) and not isinstance(max_loss, bool)
    if max_loss is not None and not (number and max_loss > 0):
        raise CacheError(f"kv_max_loss={max_loss!r}: expected a number above 0; leave it unset for no limit")
