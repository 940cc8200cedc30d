"""``BudgetCache``: a transformers cache of a fixed number of slots, however long the sequence grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache

from budgetctl.errors import CacheError
from budgetctl.kernels.kv_state import NO_ANSWER, Protection
from budgetctl.kv.layer import BudgetLayer
from budgetctl.kv.policies import Policy, find_policy
from budgetctl.kv.shared import Shared

#: Slots: for every head, for each layer, or for each head of each layer.
Capacity = int | Sequence[int] | Sequence[Sequence[int]]


class BudgetCache(Cache):
    """Keys and values of at most ``capacity`` tokens a layer and head, in memory that is allocated once.

    >>> from budgetctl.kv import BudgetCache
    >>> model.set_attn_implementation("budget_kv")                                 # doctest: +SKIP
    >>> cache = BudgetCache(model.config, capacity=512)                            # doctest: +SKIP
    >>> model.generate(**inputs, past_key_values=cache)                            # doctest: +SKIP

    While everything fits the result is that of a full cache. Beyond, each new token takes the slot of the one that the
    policy gives up; the first tokens, a prompt of at most ``prompt_share`` of the slots, the latest tokens and the answer
    (:meth:`begin_answer`) stay. Keys keep the rotation of their own position. Rows of a left-padded batch are kept
    apart: padding takes no slot. A prompt longer than the capacity may come in blocks
    (``generate(prefill_chunk_size=...)``), and is then held in capacity + block slots at most; where a row's blocks end
    depends on its padding then.

    Args:
        config: of a decoder-only model whose layers attend to all tokens.
        capacity: slots a key-value head: one number, one a layer, or one a head of each layer (see
            ``budgetctl.kv.allocators``). For other capacities in each row see :meth:`by_row`.
        policy: what to give up, or the name of it in ``budgetctl.kv.policies.POLICIES``; ``diverse-max`` by default.
        sinks: first tokens that stay.
        recent: latest tokens that stay; by default 32, or a quarter of the smallest capacity.
        prompt_share: a prompt of at most this share of a head's slots stays whole; a longer one competes by importance.
        answer_overflow: what an answer does that is longer than the slots it can have: ``raise`` a CacheError, or
            ``evict`` its own tokens by importance, the first of them.
        evicted: keep account of the attention that evicted tokens had (:meth:`evicted_mass`).

    Raises:
        CacheError: for a model or a capacity that this cannot be.
    """

    layers: list[BudgetLayer]

    def __init__(
        self,
        config: Any,
        capacity: Capacity,
        policy: Policy | str | None = None,
        *,
        sinks: int = Protection.sinks,
        recent: int | None = None,
        prompt_share: float = Protection.prompt_share,
        answer_overflow: str = "raise",
        evicted: bool = False,
        _rows: int | None = None,
    ) -> None:
        config = decoder_config(config)
        heads = config.num_key_value_heads * (_rows or 1)
        capacities = _by_head(capacity, config.num_hidden_layers, heads)
        smallest = min(map(min, capacities))
        self.policy = find_policy(policy).fitted(smallest)
        self.protection = Protection(
            sinks,
            max(1, min(Protection.recent, smallest // 4)) if recent is None else recent,
            prompt_share,
        )
        _check_room(smallest, self.policy, self.protection)
        if answer_overflow not in ("raise", "evict"):
            raise CacheError(f"answer_overflow={answer_overflow!r}: expected 'raise' or 'evict'")
        if self.policy.shared_heads and _rows is not None:
            raise CacheError(
                f"{type(self.policy).__name__} with capacities by row: expected one capacity, as all heads keep the same "
                "tokens; give a number of slots"
            )
        if self.policy.shared_heads and any(len(set(layer)) > 1 for layer in capacities):
            raise CacheError(
                f"{type(self.policy).__name__} with different capacities for the heads of a layer: expected equal ones, as "
                "all heads keep the same tokens; give one capacity a layer"
            )
        self._peak = 0
        shared = Shared()
        super().__init__(
            layers=[
                BudgetLayer(
                    layer,
                    self.policy,
                    self.protection,
                    rows=_rows,
                    answer_overflow=answer_overflow,
                    evicted=evicted,
                    shared=shared,
                )
                for layer in capacities
            ]
        )
        shared.layers = self.layers

    @classmethod
    def by_row(cls, config: Any, capacities: Sequence[int], *args: Any, **options: Any) -> BudgetCache:
        """A cache whose rows have capacities of their own, in memory of just that many slots.

        Args:
            config: as above, and so are all further arguments.
            capacities: slots a key-value head, one number for each row of the batch.
        """
        heads = decoder_config(config).num_key_value_heads
        layers = decoder_config(config).num_hidden_layers
        each = [slots for slots in capacities for _ in range(heads)]
        return cls(config, [each] * layers, *args, _rows=len(capacities), **options)

    @property
    def capacities(self) -> list[tuple[int, ...]]:
        """Slots of each head, by layer; by row and head in a cache of :meth:`by_row`."""
        return [layer.capacities for layer in self.layers]

    @property
    def row_capacities(self) -> list[int] | None:
        """Slots a head of each row; None where all rows have the same."""
        layer = self.layers[0]
        return None if layer.rows is None else list(layer.capacities[:: layer.row_heads])

    def resize(self, capacities: Sequence[int]) -> None:
        """Give the rows other capacities (a cache of :meth:`by_row`), a layer at a time, each in one copy.

        Args:
            capacities: slots a head of each row.

        Raises:
            CacheError: for too few slots, or a cache whose rows all have the same.
        """
        layer = self.layers[0]
        if layer.rows != len(capacities):
            raise CacheError(
                f"{len(capacities)} capacities for {layer.rows or 'no'} rows that have their own: expected one a row; make "
                "the cache with BudgetCache.by_row"
            )
        _check_room(min(capacities), self.policy, self.protection)
        by_head = tuple(slots for slots in capacities for _ in range(layer.row_heads))
        for layer in self.layers:
            before = 0 if layer.state is None else layer.state.bytes
            layer.resize(by_head)
            self._peak = max(self._peak, self.bytes_allocated + before)

    def evicted_mass(self) -> torch.Tensor:
        """[B] float, for each row the importance that its evicted tokens had then, summed over them, a head's mean.

        By the default policy that is the largest share of attention that a token got from any query, fading; so 1 means
        tokens as important as one that a query looked at alone.

        Raises:
            CacheError: for a cache without ``evicted=True``, or before the first token.
        """
        found = [
            layer.by_row(layer.state.evicted).float().mean(1)
            for layer in self.layers
            if layer.state is not None and layer.state.evicted is not None
        ]
        if not found:
            raise CacheError(
                "no account of evicted tokens: expected BudgetCache(..., evicted=True) and some tokens in it"
            )
        return torch.stack([mass.to(found[0].device) for mass in found]).mean(0)

    @property
    def bytes_allocated(self) -> int:
        """Bytes of all keys, values and state; 0 before the first token, and the same ever after."""
        return sum(layer.state.bytes for layer in self.layers if layer.state is not None)

    @property
    def peak_bytes(self) -> int:
        """Most bytes that were allocated at a time, with the copy of a layer that :meth:`resize` makes."""
        return max(self._peak, self.bytes_allocated)

    @property
    def batch_size(self) -> int:
        """Rows; -1 before the first token."""
        return self.layers[0].batch

    def positions(self, layer_idx: int) -> torch.Tensor:
        """[B, H, C] int32, places of the tokens that a layer holds, -1 for an empty slot, in no order."""
        layer = self.layers[layer_idx]
        if layer.state is None:
            raise CacheError("no positions yet: expected some tokens in the cache; generate first")
        return layer.by_row(layer.state.head_positions())

    def in_answer(self) -> torch.Tensor:
        """[B] bool, rows whose answer has begun (:meth:`begin_answer`)."""
        layer = self.layers[0]
        if layer.state is None:
            raise CacheError("no rows yet: expected some tokens in the cache; generate first")
        return layer.by_row(layer.state.answers)[:, 0] != NO_ANSWER

    def begin_answer(
        self, rows: torch.Tensor | None = None, reserve: int = 0, written: torch.Tensor | None = None
    ) -> None:
        """The thought of some rows is over: what they write from here on is never evicted.

        Args:
            rows: [B] bool; None for all. Rows that are in their answer stay there.
            reserve: tokens of room that are made at once, by giving up the lowest of prompt and thought.
            written: [B] int64, tokens of the answer that are in the cache already; None for none.

        Raises:
            CacheError: before the prompt, or for a negative reserve. Later, when the answer leaves nothing to give up.
        """
        if reserve < 0:
            raise CacheError(f"a reserve of {reserve} tokens: expected 0 or more; give the answer's reserve")
        for layer in self.layers:
            count = layer.batch
            asked = torch.ones(max(count, 0), dtype=torch.bool) if rows is None else rows
            if count >= 0 and asked.shape != (count,):
                raise CacheError(f"rows have shape {tuple(asked.shape)}: expected [{count}], one a row")
            if layer.state is not None:
                device = layer.state.keys.device
                asked = asked.to(device)
                written = None if written is None else written.to(device)
            layer.begin_answer(asked, reserve, written)


def decoder_config(config: Any) -> Any:
    """The configuration of the layers.

    Raises:
        CacheError: unless all of them attend to all tokens.
    """
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ()) - {"full_attention"}
    if not getattr(text, "layer_types", None) and getattr(text, "sliding_window", None) is not None:
        kinds = {"sliding_attention"}
    if getattr(config, "is_encoder_decoder", False):
        kinds = {"cross-attention"}
    if getattr(text, "num_kv_shared_layers", None):
        kinds = {"shared keys and values"}
    if kinds:
        raise CacheError(
            f"{type(config).__name__} has layers with {min(kinds)}: expected a decoder-only model whose layers attend to all "
            "tokens; use transformers' own cache for it"
        )
    return text


def _by_head(capacity: Capacity, layers: int, heads: int) -> list[tuple[int, ...]]:
    each: list[Any] = [capacity] * layers if isinstance(capacity, int) else list(capacity)
    found = [(slots,) * heads if isinstance(slots, int) else tuple(slots) for slots in each]
    if len(found) != layers or any(len(layer) != heads for layer in found):
        shape = f"{len(found)} layers of {sorted({len(layer) for layer in found})} heads"
        raise CacheError(
            f"capacities for {shape}: expected {layers} layers of {heads} key-value heads; give one number, one a layer, or "
            "one a head of each layer"
        )
    if min(map(min, found)) < 1:
        raise CacheError(f"a capacity of {min(map(min, found))}: expected at least 1 slot a head; give more")
    return found


def _check_room(smallest: int, policy: Policy, protection: Protection) -> None:
    assert policy.interval is not None
    if protection.sinks < 0 or protection.recent < 1 or not 0 <= protection.prompt_share < 1:
        raise CacheError(
            f"sinks={protection.sinks}, recent={protection.recent}, prompt_share={protection.prompt_share}: expected sinks "
            "of 0 or more, at least 1 recent token and a share from 0 to below 1"
        )
    prompt = max(protection.sinks, int(protection.prompt_share * smallest))
    needed = prompt + protection.recent + policy.interval
    if needed > smallest:
        raise CacheError(
            f"a capacity of {smallest} slots: expected at least {needed} to have something to evict, for the first {prompt} tokens, "
            f"the {protection.recent} latest and {policy.interval} victims; raise it, or lower sinks, recent, prompt_share or the "
            "policy's interval"
        )
