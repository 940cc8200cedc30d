"""What ``budgetctl bench kv`` times against each other: caches of a thought so far, and the attention that goes with each.

Every subject is made at a length and decodes on from there, as in a generation: its cache grows, or evicts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from transformers import Cache

from budgetctl.evals import kv_bytes
from budgetctl.evals.kv_fill import Drawn, allocated_bytes, budget_cache, full_cache, static_cache
from budgetctl.kv.attention import NAME as BUDGET
from budgetctl.kv.policies import find_policy

FULL, STATIC, KVPRESS = "DynamicCache", "StaticCache", "kvpress"
#: Queries that kvpress' SnapKV looks at.
SNAP_QUERIES = 8


@dataclass(frozen=True)
class Setting:
    """One line of a table.

    Args:
        batch: rows.
        tokens: seen before the first timed step.
        capacity: slots a head of a BudgetCache; 0 for as many as there will be tokens.
        runs: of steps that will be timed, at most.
        steps: that will follow in all.
        interval: tokens between two compressions of kvpress.
    """

    batch: int
    tokens: int
    capacity: int
    runs: int
    steps: int
    interval: int = 128

    @property
    def slots(self) -> int:
        """Capacity of a BudgetCache here: it is never larger than needed."""
        # Room for a queue of victims beyond the last token.
        longest = self.tokens + self.steps + 128
        return min(self.capacity, longest) if self.capacity else longest


@dataclass
class Subject:
    """A cache at work.

    Args:
        name: in the report.
        cache: filled.
        implementation: of attention, by transformers' name.
        held: tokens a row that attention looks at.
        moved: bytes that a step moves because of the cache, by :mod:`budgetctl.evals.kv_bytes`.
        hooks: what has to be on the model while it steps.
        allocated: bytes of the cache before the first timed step.
    """

    name: str
    cache: Cache
    implementation: str
    held: int
    moved: float
    hooks: Callable[[Any], AbstractContextManager[object]] = field(default=lambda model: nullcontext())
    allocated: int = field(init=False)

    def __post_init__(self) -> None:
        self.allocated = allocated_bytes(self.cache)


def make(name: str, drawn: Drawn, setting: Setting, *, layers: int | None = None) -> Subject:
    """The subject of that name (:data:`FULL`, :data:`STATIC`, :data:`KVPRESS`, or a policy), of the first ``layers``."""
    shape, batch, tokens = kv_bytes.CacheShape.of(drawn), setting.batch, setting.tokens
    moved: float
    if name == FULL:
        moved = kv_bytes.full_bytes(shape, batch, tokens)
        return Subject(name, full_cache(drawn, tokens, layers=layers), "sdpa", tokens, moved)
    if name == STATIC:
        # Attention goes over all columns, those without a token too.
        columns = tokens + setting.steps
        moved = kv_bytes.full_bytes(shape, batch, columns, static=True)
        cache = static_cache(drawn, tokens, setting.steps, layers=layers)
        return Subject(name, cache, "sdpa", columns, moved)
    if name == KVPRESS:
        # As many slots at its peak as the others have.
        target = min(max(setting.slots - setting.interval, SNAP_QUERIES + 1), tokens)
        moved = kv_bytes.kvpress_bytes(shape, batch, target, setting.interval)
        press = _Press(target, setting.interval)
        cache = full_cache(drawn, target, layers=layers)
        return Subject(f"{name}, SnapKV", cache, "sdpa", target, moved, press.on)
    policy = find_policy(name).fitted(setting.slots)
    moved = kv_bytes.budget_bytes(shape, batch, min(setting.slots, tokens), policy)
    cache = budget_cache(drawn, tokens, setting.slots, name, layers=layers)
    return Subject(name, cache, BUDGET, min(setting.slots, tokens), moved)


def kvpress_missing() -> str | None:
    """Why kvpress cannot be timed; None where it can."""
    if find_spec("kvpress") is None:
        return (
            "kvpress is not installed: left out (pip install --no-deps kvpress==0.5.5, and what it asks for)"
        )
    return None


class _Press:
    """kvpress' DecodingPress, whose hooks come and go without its count of steps being lost."""

    def __init__(self, target: int, interval: int) -> None:
        from kvpress import DecodingPress, SnapKVPress

        self._press = DecodingPress(
            SnapKVPress(window_size=SNAP_QUERIES), compression_interval=interval, target_size=target
        )

    @contextmanager
    def on(self, model: Any) -> Iterator[None]:
        """Hooks on all attention modules of ``model``."""
        self._press.post_init_from_model(model)
        handles = []
        for layer in model.model.layers:
            module = layer.self_attn
            module.rotary_emb = model.model.rotary_emb
            # It reads an argument that transformers has not passed on since 5.3.
            handles.append(module.register_forward_pre_hook(_with_position, with_kwargs=True))
            handles.append(module.register_forward_hook(self._press.forward_hook, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _with_position(
    module: torch.nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return arguments, {**options, "cache_position": options["position_ids"][0]}


class Decoder:
    """Decode steps of a model on one subject's cache.

    Args:
        model: of the cache's shape.
        subject: whose cache goes on by a token at each call.
        setting: of the subject.
    """

    def __init__(self, model: Any, subject: Subject, setting: Setting) -> None:
        self.model, self.subject = model, subject
        device = model.device
        self.ids = torch.full((setting.batch, 1), 5, device=device)
        self.position = torch.full((1, 1), setting.tokens, device=device)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """With the subject's attention and hooks on the model."""
        self.model.set_attn_implementation(self.subject.implementation)
        with self.subject.hooks(self.model), torch.inference_mode():
            yield

    def __call__(self) -> torch.Tensor:
        """One step; logits [B, 1, V]."""
        output = self.model(
            self.ids, position_ids=self.position, past_key_values=self.subject.cache, use_cache=True
        )
        self.position += 1
        logits: torch.Tensor = output.logits
        return logits


class AttentionCall:
    """What one attention module does with its cache at a step, once keys, values and queries are there.

    Args:
        drawn: of the cache's shape.
        subject: without hooks.
        setting: of the subject.
        layers: of the subject, which the calls go through one after the other.
    """

    def __init__(self, drawn: Drawn, subject: Subject, setting: Setting, layers: int = 1) -> None:
        self.subject, self.layers, self._layer = subject, layers, -1
        self._query, self._key, self._value = (
            drawn.normal(heads, 1) for heads in (drawn.query_heads, drawn.heads, drawn.heads)
        )
        self._module = torch.nn.Module()
        self._module.num_key_value_groups = drawn.query_heads // drawn.heads  # type: ignore[assignment]
        self._module.is_causal = True  # type: ignore[assignment]
        self._mask: torch.Tensor | None = None
        if subject.name == STATIC:
            # transformers makes it once a step for all layers, so that it is no part of a call.
            columns = torch.arange(setting.tokens + setting.steps, device=drawn.device)
            self._mask = (columns <= setting.tokens)[None, None, None].expand(setting.batch, 1, 1, -1)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """In inference mode."""
        with torch.inference_mode():
            yield

    def __call__(self) -> torch.Tensor:
        """One call; [B, 1, G H, E]."""
        from transformers import AttentionInterface

        attend = AttentionInterface()[self.subject.implementation]
        self._layer = (self._layer + 1) % self.layers
        key, value = self.subject.cache.update(self._key, self._value, self._layer)
        output: torch.Tensor = attend(self._module, self._query, key, value, self._mask)[0]
        return output
