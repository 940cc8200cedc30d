"""How each request of an engine ended, told to the counters: kinds of closes are noted by slot while a request runs, the
rest is read from its tokens when it has left, on a thread of its own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from queue import Queue
from threading import Thread
from typing import Any

import numpy as np
import torch

from budgetctl.budget import NO_CAP
from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.integrations.vllm.counters import Counters
from budgetctl.integrations.vllm.knobs import RequestLimits
from budgetctl.integrations.vllm.memory import SlotPredictions
from budgetctl.kernels.host_reads import array_of, may_look
from budgetctl.predicted_caps import share_of
from budgetctl.segments import split_sequence
from budgetctl.telemetry import ThoughtReport

#: What a close was, by the code that is noted.
_KINDS = ("natural", "steered", "forced")
_NATURAL, _STEERED, _FORCED = range(3)
#: Share of its probability that the model itself gives to a natural close.
_OWN_SHARE = 0.5

Array = np.ndarray[Any, Any]

logger = logging.getLogger("vllm.budgetctl")


@dataclass(frozen=True)
class Facts:
    """What does not change of a request.

    Args:
        limits: of its thought.
        prompt_tokens: tokens of its prompt.
        most_tokens: new tokens with which it ends at the latest.
        stops: tokens with which it ends.
    """

    limits: RequestLimits
    prompt_tokens: int
    most_tokens: int
    stops: frozenset[int]

    @classmethod
    def of(
        cls,
        sampling_params: Any,
        limits: RequestLimits,
        prompt_tokens: int,
        context: int,
        delimiters: ThinkingDelimiters,
    ) -> Facts:
        """Read from vLLM's sampling parameters; ``context`` tokens are the most of prompt and generation."""
        stops = set(getattr(sampling_params, "stop_token_ids", None) or ())
        if hasattr(sampling_params, "eos_token_id"):
            stops |= {sampling_params.eos_token_id} - {None}
        else:
            stops |= set(delimiters.eos_ids)
        room = context - prompt_tokens
        length = sampling_params.max_tokens
        return cls(limits, prompt_tokens, room if length is None else min(length, room), frozenset(stops))

    def ended(self, new_ids: Sequence[int]) -> list[int] | None:
        """The tokens of a request that has left, up to its end; None where it has not come to it: it was sent back, its
        client has gone, or a text ended it, which the engine is not told of."""
        for at, token in enumerate(new_ids[: self.most_tokens]):
            if token < 0:
                return None
            if token in self.stops:
                return list(new_ids[: at + 1])
        return list(new_ids[: self.most_tokens]) if len(new_ids) >= self.most_tokens else None


@dataclass(frozen=True)
class _Left:
    """A request that has left; copies from the device are there after ``ready``."""

    facts: Facts
    prompt: list[int] | None
    new_ids: list[int]
    row: torch.Tensor | None
    length: torch.Tensor | None
    noted: torch.Tensor | None
    ready: Any


class Tally:
    """Stands in for a controller's ``CloseLog``: of each slot, the latest steps inside its thought are noted, as many as a
    close may have tokens. With drafts, which are several steps of a slot at once, a note may be of another of them.

    Args:
        delimiters: the markers.
        counters: to be told.
        predictions: by slot.
        device: of the logits.
    """

    def __init__(
        self,
        delimiters: ThinkingDelimiters,
        counters: Sequence[Counters],
        predictions: SlotPredictions,
        device: torch.device,
    ) -> None:
        self._delimiters, self._counters = delimiters, tuple(counters)
        self._predictions, self._device = predictions, device
        longest = max(map(len, (*delimiters.all_ends, delimiters.forced_end_ids)))
        self._kinds = torch.zeros(0, longest, dtype=torch.int64, device=device)
        #: [B] bool, rows of the coming step that take the likeliest token.
        self.greedy = torch.zeros(0, dtype=torch.bool, device=device)
        self._queue: Queue[_Left] = Queue()
        Thread(target=self._work, name="budgetctl-tally", daemon=True).start()

    def begin(self, slot: int) -> None:
        """A request takes the slot."""
        self._predictions.grow(slot + 1)
        self._predictions.forget(slot)
        missing = slot + 1 - len(self._kinds)
        if missing > 0:
            added = max(missing, len(self._kinds), 16)
            self._kinds = torch.nn.functional.pad(self._kinds, (0, 0, 0, added))
        self._kinds[slot] = _NATURAL

    def record(
        self,
        keys: torch.Tensor,
        before: torch.Tensor,
        after: torch.Tensor,
        preferred: torch.Tensor,
        forced: torch.Tensor,
        exited: torch.Tensor | None = None,
    ) -> None:
        """As ``CloseLog.record``, by slot: what a close would be whose token is written at this step."""
        slots = self._predictions.slots
        if may_look(slots.device):
            self._record_on_host(*map(array_of, (slots, keys, before, after, preferred, forced)))
            return
        noted = self._kinds[slots]
        own = torch.where(self.greedy, preferred, before >= _OWN_SHARE * torch.where(forced, 1.0, after))
        code = torch.where(own, _NATURAL, torch.where(forced, _FORCED, _STEERED))
        later = torch.cat([noted[:, 1:], code[:, None]], 1)
        self._kinds[slots] = torch.where(keys[:, None] != 0, later, noted)

    def _record_on_host(
        self, slots: Array, keys: Array, before: Array, after: Array, preferred: Array, forced: Array
    ) -> None:
        """The same by NumPy, whose operations on few numbers cost less."""
        own = np.where(array_of(self.greedy), preferred, before >= _OWN_SHARE * np.where(forced, 1.0, after))
        code = np.where(own, _NATURAL, np.where(forced, _FORCED, _STEERED))
        thinking = keys != 0
        at, kinds = slots[thinking], array_of(self._kinds)
        kinds[at, :-1] = kinds[at, 1:]
        kinds[at, -1] = code[thinking]

    def left(self, facts: Facts, prompt: list[int], new_ids: Sequence[int], slot: int | None) -> None:
        """A request has left the batch.

        Args:
            facts: of it.
            prompt: what is kept of its prompt.
            new_ids: what was generated, as far as it is known.
            slot: that it had, None where it had no limit.
        """
        noted, ready = self._copied(slot)
        self._queue.put(_Left(facts, prompt, list(new_ids), None, None, noted, ready))

    def replaced(self, facts: Facts, row: torch.Tensor, length: torch.Tensor, slot: int) -> None:
        """A request has left, and its slot is about to be taken; the host does not wait.

        Args:
            facts: of it.
            row: [T] integers, its tokens, on the device.
            length: [] how many they are, on the device.
            slot: that it had.
        """
        copies = [part.clone().to("cpu", non_blocking=True) for part in (row, length)]
        noted, ready = self._copied(slot)
        self._queue.put(_Left(facts, None, [], copies[0], copies[1], noted, ready))

    def finish(self) -> None:
        """Wait until all that have left are counted."""
        self._queue.join()

    def _copied(self, slot: int | None) -> tuple[torch.Tensor | None, Any]:
        """[1 + m] float64, predicted length (nan for none) and codes of the latest steps of a slot, and the event of the
        copies."""
        noted, ready = None, None
        if slot is not None:
            predicted = self._predictions.of_slot(slot)
            noted = torch.cat([predicted.double()[None], self._kinds[slot].double()])
            noted = noted.to("cpu", non_blocking=True)
        if self._device.type == "cuda":
            ready = torch.cuda.Event()
            ready.record()
        return noted, ready

    def _work(self) -> None:
        while True:
            left = self._queue.get()
            try:
                self._count(left)
            except Exception:  # a request that cannot be read must not end the counting
                logger.exception("budgetctl: a finished request was not counted")
            finally:
                self._queue.task_done()

    def _count(self, left: _Left) -> None:
        if left.ready is not None:
            left.ready.synchronize()
        prompt, new_ids = left.prompt, left.new_ids
        if left.row is not None and left.length is not None:
            tokens = left.row[: int(left.length)].tolist()
            prompt, new_ids = tokens[: left.facts.prompt_tokens], tokens[left.facts.prompt_tokens :]
        ended = left.facts.ended(new_ids)
        if ended is None or prompt is None:
            return
        predicted, *codes = [torch.nan] if left.noted is None else left.noted.tolist()
        length = None if predicted != predicted else predicted
        parts = split_sequence([*prompt, *ended], len(prompt), self._delimiters)
        report = ThoughtReport(
            thinking_tokens=len(parts.thought),
            answer_tokens=len(parts.answer),
            thinking_budget=budget_of(left.facts.limits, length, self._predictions.dtype),
            predicted_tokens=length,
            close=kind_of(parts.close_span, codes),
            leaked=parts.stray_markers > 0,
        )
        for counters in self._counters:
            counters.note(report, left.facts.prompt_tokens)


def kind_of(close_span: tuple[int, int] | None, codes: Sequence[float]) -> str:
    """Of a close in these columns, with the codes of the latest steps in the thought, () for none."""
    if close_span is None:
        return "none"
    of_close = codes[len(codes) - (close_span[1] - close_span[0]) :] or [_NATURAL]
    return _KINDS[_FORCED if _FORCED in of_close else int(of_close[0])]


def budget_of(limits: RequestLimits, predicted: float | None, dtype: torch.dtype) -> int | None:
    """Thinking budget in tokens, None for none; ``predicted`` is the natural length, None where none was made."""
    cap = limits.cap
    if predicted is not None:
        share = share_of(
            torch.tensor([predicted], dtype=dtype),
            torch.tensor([limits.fraction]),
            torch.tensor([limits.minimum]),
        )
        cap = min(cap, int(share))
    return None if cap >= NO_CAP else cap
