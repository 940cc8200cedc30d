"""vLLM's first model runner: a persistent batch on the host, told of by updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.integrations.request_table import to_device
from budgetctl.integrations.vllm.history import Entry, SlotTokens, current_turn, digest
from budgetctl.integrations.vllm.knobs import RequestLimits
from budgetctl.integrations.vllm.slots import SlotLimits
from budgetctl.integrations.vllm.step_rows import StepRows


class HostRows:
    """Which requests with a limit are in the batch, in which rows, and their tokens.

    Args:
        device: of the logits.
        delimiters: the markers.
        limits_for: of a request, by its sampling parameters and the length of its prompt, None where that is not known.
        limits: where the limits of the requests are kept.
    """

    def __init__(
        self,
        device: torch.device,
        delimiters: ThinkingDelimiters,
        limits_for: Callable[[Any, int | None], RequestLimits],
        limits: SlotLimits,
    ) -> None:
        self._device = device
        self._delimiters = delimiters
        self._limits_for = limits_for
        self._limits = limits
        self._entries: dict[int, Entry] = {}
        self._tokens = SlotTokens(device)
        self._places: tuple[torch.Tensor | None, torch.Tensor, torch.Tensor] | None = None
        self._places_of = 0

    @property
    def slots(self) -> int:
        """Slots that there are."""
        return self._tokens.slots

    def update(self, batch_update: Any) -> None:
        """Follow a ``BatchUpdate``, None when the batch is as it was. A request may come into a row, or be moved over
        one, whose request has finished without a word."""
        if batch_update is None:
            return
        self._places = None
        for row in batch_update.removed:
            self._drop(row)
        for row, sampling_params, prompt, outputs in batch_update.added:
            self._drop(row)
            self._add(row, sampling_params, prompt, outputs)
        for source, target, direction in batch_update.moved:
            moved, other = self._entries.pop(source, None), self._entries.pop(target, None)
            if moved is not None:
                self._entries[target] = moved
            if other is not None and direction.name == "SWAP":
                self._entries[source] = other
            elif other is not None:
                self._tokens.give_back(other.slot)

    def step(self, rows: int) -> StepRows | None:
        """The rows with a limit among the ``rows`` of the logits; None when there is none.

        Raises:
            RuntimeError: when the engine keeps sampled tokens to itself.
        """
        if not self._entries:
            return None
        order = sorted(self._entries)
        entries = [self._entries[row] for row in order]
        self._tokens.write([(e.slot, *token) for e in entries for token in e.unwritten()])
        if not all(entry.known for entry in entries):
            raise RuntimeError(
                "the engine shows placeholders for sampled tokens, so that budgets cannot be kept: expected the "
                "processor to be given by --logits-processors, and not by an entry point; start vLLM so"
            )
        self._limits.flush()
        known = [entry.slot for entry in entries]
        if self._places is None or self._places_of != rows:
            index = None if len(order) == rows else to_device(torch.tensor(order), self._device)
            slots, prompts = to_device(
                torch.tensor([known, [len(entry.prompt) for entry in entries]]), self._device
            )
            self._places, self._places_of = (index, slots, prompts), rows
        index, slots, prompts = self._places
        tokens = [entry.length for entry in entries]
        lengths = to_device(torch.tensor(tokens), self._device)
        input_ids = self._tokens.prefixes(slots, lengths, max(tokens))
        return StepRows(index, input_ids, lengths, prompts, slots, known)

    def _add(self, row: int, sampling_params: Any, prompt: Sequence[int] | None, outputs: list[int]) -> None:
        thought = self._delimiters
        limits = self._limits_for(sampling_params, None if prompt is None else len(prompt))
        if not limits.asked:
            return
        begin = 0
        if prompt is None:  # embeddings: what the template would write is all that can be known
            opened = (*thought.open_ids, *thought.lead_ids) if thought.opened_by_template else ()
            prompt = [*thought.turn_start_ids, *opened]
        else:
            begin = current_turn(prompt, thought.turn_start_ids)
        entry = Entry(self._tokens.take(), list(prompt[begin:]), outputs)
        self._tokens.begin(entry.slot, entry.prompt)
        self._limits.write(entry.slot, limits, digest(prompt[:begin]))
        self._entries[row] = entry

    def _drop(self, row: int) -> None:
        entry = self._entries.pop(row, None)
        if entry is not None:
            self._tokens.give_back(entry.slot)
