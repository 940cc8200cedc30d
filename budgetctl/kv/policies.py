"""What makes a key worth keeping: eviction policies behind one small interface.

A policy says how the importance of a slot follows the attention mass that it gets (``rule``, ``decay``, ``group``: the
part that runs inside the decode step, see :func:`budgetctl.kernels.kv_reference.decode_step`), and turns importance, keys
and norms into a score when victims are picked (``scores``). The lowest scores go. Protection of sinks, prompt, recent
tokens and answer is not the policy's business.

Papers here score once or every so many tokens and then compact the cache. Here slots are overwritten one by one: every
``interval`` tokens the next ``interval`` victims are named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch.nn import functional as F

from budgetctl.errors import CacheError
from budgetctl.kernels.kv_novelty import novelty
from budgetctl.kernels.kv_state import Group, Rule, SlotState
from budgetctl.kernels.kv_victims import VictimTable
from budgetctl.kv.scores import difference, diverse, guarded, pooled, redundancy


@dataclass(frozen=True)
class Policy:
    """Base of all policies: importance is the score.

    Args:
        interval: W, tokens from one choice of victims to the next; None takes the policy's own, shortened to an eighth
            of a small capacity.
        observe: queries at the end of a prompt (or of a block of it) whose attention counts for importance.
    """

    interval: int | None = None
    observe: int = 32

    rule: ClassVar[Rule] = "max"
    group: ClassVar[Group] = "max"
    usual_interval: ClassVar[int] = 1
    #: Whether all heads of a layer keep the same tokens.
    shared_heads: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if (self.interval is not None and self.interval < 1) or self.observe < 1:
            raise CacheError(
                f"{type(self).__name__} with interval={self.interval} and observe={self.observe}: expected at least 1 token each"
            )
        if not 0 <= self.fading <= 1:
            raise CacheError(
                f"{type(self).__name__} with decay={self.fading}: expected a number between 0 and 1"
            )

    @property
    def fading(self) -> float:
        """Factor on importance at every token."""
        return 1.0

    @property
    def value_norms(self) -> bool:
        """Whether the norms of values are kept."""
        return False

    @property
    def window(self) -> int | None:
        """Queries before a choice of victims whose mass counts, None for all; at most ``interval``."""
        return None

    @property
    def guard(self) -> float | None:
        """Prior of :func:`budgetctl.kernels.kv_reference.guarded` where that is the score, which a kernel can compute."""
        return None

    @property
    def plain(self) -> bool:
        """Whether importance itself is the score."""
        return type(self).scores is Policy.scores

    def fitted(self, capacity: int) -> Policy:
        """The same with an interval, suited to ``capacity`` slots where none was given."""
        if self.interval is not None:
            return self
        return replace(self, interval=max(1, min(self.usual_interval, capacity // 8)))

    def scores(self, state: SlotState, width: int | None = None) -> torch.Tensor:
        """Worth of each slot.

        Args:
            state: read only.
            width: look at the first ``width`` columns of each head; None for all.

        Returns:
            [B, H, w] of the dtype of ``state.importance``; anything in empty slots.
        """
        return state.heads(state.importance, width)

    def scores_of(
        self, states: Sequence[SlotState], width: int | None = None, table: VictimTable | None = None
    ) -> Sequence[torch.Tensor] | torch.Tensor:
        """:meth:`scores` of several layers, [B, H, w] each, w at most the layer's own slots; ``table`` is of these states."""
        return [self.scores(state, width) for state in states]


@dataclass(frozen=True)
class DecayedMax(Policy):
    """The largest attention a key got from any query and head of its group, fading by ``decay`` a token.

    The worst case of DefensiveKV (arXiv 2510.13334), followed online. Without fading it is worse than a sliding window,
    because each key is looked at when it is new and never loses that. Times the norm of the value, and not below
    ``prior`` times the mean over the head's keys, so that among keys that were hardly looked at the value decides
    (DefensiveKV: a prior of 1; 0 leaves the value out).
    """

    decay: float = 0.97
    prior: float = 0.1
    usual_interval: ClassVar[int] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.prior < float("inf"):
            raise CacheError(
                f"DecayedMax with prior={self.prior}: expected a number of at least 0; 0 leaves it out"
            )

    @property
    def fading(self) -> float:
        return self.decay

    @property
    def value_norms(self) -> bool:
        return self.prior > 0

    @property
    def guard(self) -> float | None:
        return self.prior or None

    def scores(self, state: SlotState, width: int | None = None) -> torch.Tensor:
        return guarded(state, width, self.prior) if self.prior else state.heads(state.importance, width)


@dataclass(frozen=True)
class DiverseMax(Policy):
    """The default: attention, and novelty where it tells (:func:`budgetctl.kv.scores.diverse`).

    Attention alone gives up what has not been looked at lately, even where it stands for nothing else in the cache and
    will be needed once; novelty alone gives up what is looked at all the time. So novelty counts while most tokens are
    kept, and most in heads that do not park their attention on a sink. R-KV (arXiv 2505.24133) adds attention and redundancy
    too, with one weight, from a window and with every pair of keys.
    """

    decay: float = 0.97
    novelty: float = 40.0
    usual_interval: ClassVar[int] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.novelty < float("inf"):
            raise CacheError(
                f"DiverseMax with novelty={self.novelty}: expected a number of at least 0; 0 leaves it out"
            )

    @property
    def fading(self) -> float:
        return self.decay

    @property
    def value_norms(self) -> bool:
        return True

    def scores(self, state: SlotState, width: int | None = None) -> torch.Tensor:
        return diverse(state, self.novelty, width)

    def scores_of(
        self, states: Sequence[SlotState], width: int | None = None, table: VictimTable | None = None
    ) -> Sequence[torch.Tensor] | torch.Tensor:
        return novelty(states, self.novelty, width, table)


@dataclass(frozen=True)
class Window(Policy):
    """Latest tokens and sinks (StreamingLLM, arXiv 2309.17453); looks at no attention."""

    rule: ClassVar[Rule] = "none"

    def scores(self, state: SlotState, width: int | None = None) -> torch.Tensor:
        return state.head_positions(width).to(state.importance.dtype)


@dataclass(frozen=True)
class HeavyHitters(Policy):
    """H2O (arXiv 2306.14048): sum of attention since the key came, mean over its group. With ``decay`` below 1 a moving
    average. Of the prompt's queries only the last ``observe`` count, where H2O sums over all."""

    decay: float = 1.0
    rule: ClassVar[Rule] = "sum"
    group: ClassVar[Group] = "mean"

    @property
    def fading(self) -> float:
        return self.decay


@dataclass(frozen=True)
class Tova(Policy):
    """TOVA (arXiv 2401.06104): attention of the latest query, mean over all heads; all heads keep the same tokens."""

    observe: int = 1
    group: ClassVar[Group] = "mean"
    shared_heads: ClassVar[bool] = True

    @property
    def fading(self) -> float:
        return 0.0

    def scores(self, state: SlotState, width: int | None = None) -> torch.Tensor:
        found = state.heads(state.importance, width)
        return found.mean(1, keepdim=True).expand_as(found)


@dataclass(frozen=True)
class Windowed(Policy):
    """Base of the policies that look at the last ``queries`` queries only, just before victims are chosen."""

    queries: int = 8
    usual_interval: ClassVar[int] = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.queries < 1 or (self.interval is not None and self.queries > self.interval):
            raise CacheError(
                f"{type(self).__name__} with queries={self.queries} and interval={self.interval}: expected between 1 "
                "and interval; take a longer interval or fewer queries"
            )

    @property
    def window(self) -> int:
        return self.queries

    def fitted(self, capacity: int) -> Policy:
        if self.interval is not None:
            return self
        interval = max(1, min(self.usual_interval, capacity // 8))
        return replace(self, interval=interval, queries=min(self.queries, interval))


@dataclass(frozen=True)
class Defensive(Windowed):
    """DefensiveKV (arXiv 2510.13334): worst case over the window and the group, not below its mean over the head's keys
    (the prior), times the value's norm over its mean.

    Departures: no smoothing over neighbours and no first stage by cumulated attention; the norm is that of the value
    before the output projection, and heads are not normalised against each other, as they need not keep the same tokens.
    """

    queries: int = 32

    @property
    def value_norms(self) -> bool:
        return True

    @property
    def guard(self) -> float | None:
        return 1.0

    def scores(self, state: SlotState, width: int | None = None) -> torch.Tensor:
        return guarded(state, width, 1.0)


@dataclass(frozen=True)
class Snap(Windowed):
    """SnapKV (arXiv 2404.14469) at decode: mean attention of the last queries and of the group, averaged over ``pool``
    neighbouring tokens (neighbours among those kept)."""

    pool: int = 5
    rule: ClassVar[Rule] = "sum"
    group: ClassVar[Group] = "mean"

    def scores(self, state: SlotState, width: int | None = None) -> torch.Tensor:
        return pooled(state, width, self.pool, F.avg_pool1d)


@dataclass(frozen=True)
class RKV(Windowed):
    """R-KV (arXiv 2505.24133): ``balance`` x importance - (1 - ``balance``) x redundancy of the key among the kept ones.

    Importance is the mean over the last queries of the group's largest attention, then the maximum over ``pool``
    neighbours; the released code takes the largest logit of the group before the softmax instead.
    """

    balance: float = 0.1
    pool: int = 7
    similar: float = 0.5
    rule: ClassVar[Rule] = "sum"

    def scores(self, state: SlotState, width: int | None = None) -> torch.Tensor:
        importance = pooled(state, width, self.pool, F.max_pool1d) / self.queries
        return self.balance * importance - (1 - self.balance) * redundancy(state, self.similar, width)


@dataclass(frozen=True)
class KeyDiff(Policy):
    """KeyDiff (arXiv 2504.15364): minus the cosine of a key to the mean direction of the head's keys."""

    rule: ClassVar[Rule] = "none"
    usual_interval: ClassVar[int] = 16

    def scores(self, state: SlotState, width: int | None = None) -> torch.Tensor:
        return difference(state, width) - 1

    def scores_of(
        self, states: Sequence[SlotState], width: int | None = None, table: VictimTable | None = None
    ) -> Sequence[torch.Tensor] | torch.Tensor:
        # The same order without the 1.
        return novelty(states, None, width, table)


#: Policies by name, as the command line and configurations give them.
POLICIES: dict[str, type[Policy]] = {
    "diverse-max": DiverseMax,
    "decayed-max": DecayedMax,
    "window": Window,
    "h2o": HeavyHitters,
    "tova": Tova,
    "defensive": Defensive,
    "snapkv": Snap,
    "r-kv": RKV,
    "keydiff": KeyDiff,
}


def find_policy(policy: Policy | str | None) -> Policy:
    """The policy itself, of that name, or the default one.

    Raises:
        CacheError: for an unknown name.
    """
    if isinstance(policy, Policy):
        return policy
    if policy is None:
        return DiverseMax()
    if policy not in POLICIES:
        raise CacheError(f"unknown policy {policy!r}: expected one of {', '.join(POLICIES)}")
    return POLICIES[policy]()
