"""Eviction under a KV budget, slowly: one row in float64 with dictionaries and loops, written apart from the kernels.

A head holds ``position -> (key, value, importance)``. Tokens come one by one; a block is a prompt whose queries see all
that comes before them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass
class Entry:
    key: Array
    value: Array
    importance: float = 0.0


Held = dict[int, Entry]
#: From the heads of a row to a score for every position of each.
Score = Callable[[list[Held]], list[dict[int, float]]]


def by_importance(heads: list[Held]) -> list[dict[int, float]]:
    return [{position: entry.importance for position, entry in held.items()} for held in heads]


@dataclass
class RowSimulator:
    capacities: list[int]
    rule: str = "max"
    decay: float = 1.0
    group: str = "max"
    interval: int = 1
    window: int | None = None
    observe: int = 32
    sinks: int = 4
    recent: int = 8
    prompt_share: float = 0.5
    score: Score = by_importance
    heads: list[Held] = field(default_factory=list)
    queues: list[list[int | None]] = field(default_factory=list)
    length: int = 0
    prompt: int = 0
    answer: int | None = None

    def __post_init__(self) -> None:
        self.heads = [{} for _ in self.capacities]
        self.queues = [[] for _ in self.capacities]

    def protects(self, head: int, position: int) -> bool:
        whole = self.prompt <= self.prompt_share * self.capacities[head]
        return (
            position < self.sinks
            or (whole and position < self.prompt)
            or position >= self.length - self.recent
            or (self.answer is not None and position >= self.answer)
        )

    def ranking(self, head: int) -> list[int]:
        """Positions that may go, the first to go first."""
        scores = self.score(self.heads)[head]
        free = [p for p in self.heads[head] if not self.protects(head, p)]
        return sorted(free, key=lambda p: (scores[p], p))

    def victims(self, head: int, count: int) -> list[int | None]:
        """What the next tokens take: None for an empty slot."""
        empty = min(self.capacities[head] - len(self.heads[head]), count)
        return [*[None] * empty, *(self.ranking(head)[: count - empty] if empty < count else [])]

    def attention(self, held: Held, queries: Array, scale: float) -> dict[int, Array]:
        """Weights of each query head [G] by position."""
        logits = {p: scale * (queries @ entry.key) for p, entry in held.items()}
        highest = np.max(list(logits.values()), axis=0)
        exponentials = {p: np.exp(x - highest) for p, x in logits.items()}
        total = sum(exponentials.values())
        return {p: x / total for p, x in exponentials.items()}

    def look(self, held: Held, queries: Array, scale: float, counts: bool) -> Array:
        """[G, E] output of one token's query heads; importance follows if the query counts."""
        weights = self.attention(held, queries, scale)
        for p, entry in held.items():
            if counts:
                mass = weights[p].max() if self.group == "max" else weights[p].mean()
                faded = self.decay * entry.importance
                entry.importance = max(faded, mass) if self.rule == "max" else faded + mass
        return sum(np.outer(weights[p], entry.value) for p, entry in held.items())  # type: ignore[return-value]

    def block(self, queries: Array, keys: Array, values: Array, scale: float) -> Array:
        """queries [H, G, n, D], keys [H, n, D], values [H, n, E] of real tokens -> [H, G, n, E]."""
        count = keys.shape[1]
        output = np.zeros((*queries.shape[:3], values.shape[2]))
        first = self.length
        for h, held in enumerate(self.heads):
            if self.window is not None:
                for entry in held.values():
                    entry.importance = 0.0
            # Only the last queries count, but what is old fades by the whole block.
            last = min(count, self.window or self.observe)
            for entry in held.values():
                entry.importance *= self.decay ** (count - last)
            for i in range(count):
                held[first + i] = Entry(keys[h, i], values[h, i])
                counts = self.rule != "none" and i >= count - last
                output[h, :, i] = self.look(held, queries[h, :, i], scale, counts)
        self.length = self.prompt = first + count
        for h, held in enumerate(self.heads):
            surplus = len(held) - self.capacities[h]
            going = self.ranking(h)[: max(surplus, 0)] if surplus > 0 else []
            assert len(going) == max(surplus, 0)
            self.queues[h] = going  # type: ignore[assignment]
        for held, going in zip(self.heads, self.queues, strict=True):
            for p in going:
                del held[p]  # type: ignore[arg-type]
            going.clear()
        return output

    def step(self, queries: Array, keys: Array, values: Array, scale: float) -> Array:
        """queries [H, G, D], keys [H, D], values [H, E] -> [H, G, E]."""
        if not self.queues[0]:
            self.queues = [self.victims(h, self.interval) for h in range(len(self.heads))]
        left = len(self.queues[0])
        if self.window is not None and left == self.window:
            for held in self.heads:
                for entry in held.values():
                    entry.importance = 0.0
        counts = self.rule != "none" and (self.window is None or left <= self.window)
        output = np.zeros((*queries.shape[:2], values.shape[1]))
        for h, held in enumerate(self.heads):
            victim = self.queues[h].pop(0)
            if victim is not None:
                del held[victim]
            held[self.length] = Entry(keys[h], values[h])
            output[h] = self.look(held, queries[h], scale, counts)
        self.length += 1
        return output

    def begin_answer(self, reserve: int) -> None:
        """Makes room for the answer, and names the next victims anew."""
        self.answer = self.length
        for h, held in enumerate(self.heads):
            surplus = reserve - (self.capacities[h] - len(held))
            for p in self.ranking(h)[: max(surplus, 0)]:
                del held[p]
            self.queues[h] = self.victims(h, len(self.queues[h]))
