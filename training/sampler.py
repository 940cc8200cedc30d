"""Rows of token ids continued by a model, each with randomness of its own: the decoding under every rollout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from budgetctl.delimiters import Tokens
from budgetctl.prefix_hash import mix
from budgetctl.sampling import SeededSampler


def row_seeds(seed: int, batch: int, rows: Sequence[int]) -> list[int]:
    """One noise seed for each global row of a generation batch, a function of (seed, number of the batch, row) alone.

    So a row draws the same tokens whichever process holds it, and after a resumed run as in one that went through.
    """
    start = mix(mix(torch.tensor(seed)) ^ batch)
    return mix(start ^ torch.tensor(list(rows), dtype=torch.int64)).tolist()


@dataclass(frozen=True)
class RowSampler:
    """Continues rows by ``model.generate``, the noise of each row given by its seed (:class:`SeededSampler`).

    Args:
        model: a causal language model of transformers.
        pad_id: id that pads on the left and after a row's end.
        eos_ids: ids that end a row.
        temperature: > 0.
        top_k, top_p, min_p: as in transformers; 0, 1 and None change nothing.
        round_tokens: rows that have ended leave the batch after this many tokens, and the others are read again;
            None keeps one batch to its longest row. The tokens are the same, up to rounding of the logits.
        extra: further settings of the generation config (``repetition_penalty``, ``cache_implementation``).
    """

    model: PreTrainedModel
    pad_id: int
    eos_ids: Tokens
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float | None = None
    round_tokens: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def extend(
        self,
        prefixes: Sequence[Tokens],
        seeds: Sequence[int],
        limits: Sequence[int],
        stops: Sequence[Tokens] = (),
    ) -> list[Tokens]:
        """New tokens of each row: at most ``limits[i]`` of them, up to and with its first end of sequence or stop.

        Draws depend on a row's seed, its prefix and how many tokens are new, not on the other rows. The model is
        called without gradients, in the mode (train or eval) that it is in.
        """
        new: list[Tokens] = [()] * len(prefixes)
        active = [i for i, limit in enumerate(limits) if limit > 0]
        offset = 0
        while active:
            longest = max(limits[i] for i in active) - offset
            count = longest if self.round_tokens is None else min(self.round_tokens, longest)
            rows = self._decode(
                [(*prefixes[i], *new[i]) for i in active], [seeds[i] for i in active], offset, count, stops
            )
            offset += count
            going = []
            for i, row in zip(active, rows, strict=True):
                end = self._end((*new[i], *row), limits[i], stops)
                new[i] = (*new[i], *row)[: limits[i] if end is None else end]
                if end is None and len(new[i]) < limits[i]:
                    going.append(i)
            active = going
        return new

    def _end(self, tokens: Tokens, limit: int, stops: Sequence[Tokens]) -> int | None:
        """Tokens up to and with the first end of sequence or stop within the limit; None when there is none."""
        for at in range(min(len(tokens), limit)):
            if tokens[at] in self.eos_ids or any(
                tokens[max(at + 1 - len(stop), 0) : at + 1] == stop for stop in stops
            ):
                return at + 1
        return None

    def _decode(
        self, rows: Sequence[Tokens], seeds: Sequence[int], offset: int, count: int, stops: Sequence[Tokens]
    ) -> list[Tokens]:
        """The next ``count`` tokens of each row, whatever follows its end included; ``offset`` are new already."""
        width = max(map(len, rows))
        device = self.model.device
        ids = torch.tensor([[self.pad_id] * (width - len(row)) + list(row) for row in rows], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=count,
            eos_token_id=list(self.eos_ids) or None,
            pad_token_id=self.pad_id,
            disable_compile=True,
            **self.extra,
        )
        processors = LogitsProcessorList(self._warpers())
        processors.append(SeededSampler(seeds, width - offset))
        criteria = StoppingCriteriaList([_Stops(stops, width - offset)] if stops else [])
        with torch.no_grad(), _generation_config(self.model, config):
            out = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=processors,
                stopping_criteria=criteria,
            )
        return [tuple(row) for row in out[:, width:].tolist()]

    def _warpers(self) -> Iterator[Any]:
        """What transformers would do to the logits before it samples, in its order."""
        if self.temperature != 1.0:
            yield TemperatureLogitsWarper(self.temperature)
        if self.top_k:
            yield TopKLogitsWarper(self.top_k)
        if self.top_p < 1.0:
            yield TopPLogitsWarper(self.top_p)
        if self.min_p is not None:
            yield MinPLogitsWarper(self.min_p)


@contextmanager
def _generation_config(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """``generate`` fills what a config leaves at its default from the model's own (a top-k, say): not here."""
    before = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = before


class _Stops(StoppingCriteria):
    """A row has ended when one of the stop sequences stands at its end, all of it after column ``start``."""

    def __init__(self, stops: Sequence[Tokens], start: int) -> None:
        self.stops = [torch.tensor(stop) for stop in stops]
        self.start = start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        ended = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        for stop in self.stops:
            if input_ids.shape[1] - len(stop) >= self.start:
                ended |= (input_ids[:, -len(stop) :] == stop.to(input_ids.device)).all(1)
        return ended
