"""Sequences that a method builds up over several calls of the engine, some of their tokens written by the method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.evals.harness.method import Completion, Engine
from budgetctl.segments import Segments, split_sequence
from budgetctl.spelling import encode
from budgetctl.state import ThinkingState, thinking_state


@dataclass
class Row:
    """One sequence.

    Args:
        prompt: ids that the first call is given.
        delimiters: markers of the thought.
        seed: of the noise; None for greedy decoding.
        ids: what follows the prompt, by the model or by the method.
        forced: the method wrote the close.
        read_tokens: prompt tokens of calls after the first.
        seconds: of all calls, each divided by its rows.
        kv_bytes: the largest of the calls; None where it was not counted.
        calls: so far.
    """

    prompt: tuple[int, ...]
    delimiters: ThinkingDelimiters
    seed: int | None
    ids: list[int] = field(default_factory=list)
    forced: bool = False
    read_tokens: int = 0
    seconds: float = 0.0
    kv_bytes: int | None = None
    calls: int = 0

    @property
    def state(self) -> ThinkingState:
        """Of the sequence, [1]."""
        whole = torch.tensor([[*self.prompt, *self.ids]], dtype=torch.int64)
        return thinking_state(whole, self.delimiters, prompt_length=len(self.prompt))

    @property
    def parts(self) -> Segments:
        """Thought and answer."""
        return split_sequence([*self.prompt, *self.ids], len(self.prompt), self.delimiters)

    @property
    def thinking(self) -> bool:
        """Whether the thought is open."""
        return bool(self.state.thinking)

    @property
    def finished(self) -> bool:
        """Whether the model has ended the sequence."""
        return bool(self.ids) and self.ids[-1] in self.delimiters.eos_ids

    def cut(self, budget: int) -> None:
        """Drop what an open thought has beyond ``budget`` tokens."""
        state = self.state
        excess = int(state.used) - budget
        if bool(state.thinking) and excess > 0:
            del self.ids[-excess:]

    def reopen(self, ids: Sequence[int]) -> None:
        """Take the close away, and what follows it, and write ``ids`` in its place."""
        span = self.parts.close_span
        if span is not None:
            del self.ids[span[0] - len(self.prompt) :]
        self.ids += ids

    def close(self, before: Sequence[int] = (), after: Sequence[int] = ()) -> None:
        """Write the close, with ids of the thought before it and ids of the answer after it."""
        self.ids += [*before, *self.delimiters.forced_end_ids, *after]
        self.forced = True

    def completion(self, budget: int | None) -> Completion:
        """All calls as one."""
        parts = self.parts
        close = "none" if parts.close_span is None else "forced" if self.forced else "natural"
        return Completion(
            new_ids=tuple(self.ids),
            thought=parts.thought,
            answer=parts.answer,
            close=close,
            leaked=parts.stray_markers > 0,
            thinking_budget=budget,
            predicted_tokens=None,
            predicted_cdf=None,
            seconds=self.seconds,
            kv_bytes=self.kv_bytes,
            extra={"calls": self.calls},
        )


class Rows:
    """The sequences of one batch.

    Args:
        engine: that is asked.
        prompts: ids of each.
        seeds: noise of each, which goes on over the calls; None for greedy decoding.
        max_new_tokens: most that follows a prompt, over all calls.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int] | None,
        max_new_tokens: int,
    ) -> None:
        self.engine = engine
        self.max_new_tokens = max_new_tokens
        noise: Sequence[int | None] = [None] * len(prompts) if seeds is None else seeds
        self.rows = [
            Row(tuple(prompt), engine.delimiters, seed) for prompt, seed in zip(prompts, noise, strict=True)
        ]

    def think(self, budget: int, rows: Sequence[Row] | None = None, *, stop_at_close: bool = False) -> None:
        """Generate until each of the rows (all when None) has ``budget`` thinking tokens, or more than the thought.

        Args:
            budget: of the thought, tokens.
            rows: that go on.
            stop_at_close: end a row where its thought closes; else it goes on with the answer within its limit.
        """
        marks = self.engine.delimiters
        # What the model itself writes before its first thinking token.
        opening = (
            0 if marks.opened_by_template or marks.implicit else len(marks.open_ids) + len(marks.lead_ids)
        )
        chosen = self.rows if rows is None else rows
        limits = [
            budget - int(row.state.used) + (0 if bool(row.state.started) else opening) for row in chosen
        ]
        self._extend(chosen, limits, marks.all_ends if stop_at_close else ())
        for row in chosen:
            row.cut(budget)

    def finish(self) -> None:
        """Let every row that the model has not ended go on."""
        self._extend([row for row in self.rows if not row.finished], None, ())

    def _extend(
        self, rows: Sequence[Row], limits: Sequence[int] | None, stop_ids: Sequence[Sequence[int]]
    ) -> None:
        room = [self.max_new_tokens - len(row.ids) for row in rows]
        limits = room if limits is None else [min(pair) for pair in zip(limits, room, strict=True)]
        asked = [(row, limit) for row, limit in zip(rows, limits, strict=True) if limit > 0]
        if not asked:
            return
        chosen = [row for row, _ in asked]
        seeds = [row.seed for row in chosen if row.seed is not None]
        found = self.engine.generate(
            [[*row.prompt, *row.ids] for row in chosen],
            seeds=seeds or None,
            # One limit for the batch; what a row gets beyond its own is no part of the method, and dropped.
            max_new_tokens=max(limit for _, limit in asked),
            offsets=[len(row.ids) for row in chosen],
            stop_ids=stop_ids,
        )
        for (row, limit), completion in zip(asked, found, strict=True):
            row.read_tokens += len(row.prompt) + len(row.ids) if row.calls else 0
            row.calls += 1
            row.ids += completion.new_ids[:limit]
            row.seconds += completion.seconds
            if completion.kv_bytes is not None:
                row.kv_bytes = max(row.kv_bytes or 0, completion.kv_bytes)

    def encoded(self, text: str) -> tuple[int, ...]:
        """Ids of ``text`` alone."""
        return encode(self.engine.tokenizer, text) if text else ()
