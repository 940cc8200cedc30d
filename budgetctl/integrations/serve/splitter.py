"""The tokens of one answer told apart as they come: what is thought, what is answer; markers are left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from budgetctl.delimiters import ThinkingDelimiters, Tokens
from budgetctl.state import thinking_state

#: Whether a piece belongs to the thought, and its tokens; one without tokens begins a new thought or message.
Piece = tuple[bool, list[int]]


class ThoughtSplitter:
    """Follows the rules of ``budgetctl.segments.split_sequence``, one token at a time.

    Tokens that may be the beginning of a marker are held back until that is decided. Markers in the answer, which have
    leaked, are left out as well, and so are the headers of its messages.

    Args:
        delimiters: the markers, with every end-of-sequence id of the generation.
        prompt_ids: the prompt; a thought that it opens is gone on with.
    """

    def __init__(self, delimiters: ThinkingDelimiters, prompt_ids: Sequence[int]) -> None:
        self._delimiters = delimiters
        prompt = torch.tensor([list(prompt_ids)])
        state = thinking_state(prompt, delimiters, prompt_length=prompt.shape[1])
        self.thinking = bool(state.thinking)
        self._finished = False
        # A marker may be half-written in the prompt.
        half = int(state.close_progress if self.thinking else state.open_progress)
        self._before = list(prompt_ids[len(prompt_ids) - half :])
        self._held: list[int] = []
        self._lead: Tokens = ()
        if not bool(state.started) or (bool(state.at_start) and not _ends_with(prompt_ids, delimiters)):
            self._lead = delimiters.lead_ids

    def push(self, token: int) -> list[Piece]:
        """What is decided now that ``token`` has come."""
        if self._finished:
            return []
        if token in self._delimiters.eos_ids:
            return self.finish()
        self._held.append(token)
        thinking, markers = self.thinking, self._delimiters
        if thinking and self._lead:
            if tuple(self._held) == self._lead:
                self._held, self._lead = [], ()
                return []
            if tuple(self._held) == self._lead[: len(self._held)]:
                return []
            self._lead = ()
        closed = self._completed(markers.end_variants)
        called = self._completed(markers.tool_call_ids) if thinking else 0
        opened = 0 if thinking else self._completed(markers.all_reopenings)
        header = 0 if thinking else self._completed(markers.answer_headers)
        length = max(closed, called, opened, header)
        if length:
            pieces = self._release(thinking, len(self._held) - length)
            self._before = []
            self.thinking = bool(opened)
            if called <= closed or not thinking:  # the beginning of a tool call belongs to the answer
                self._held = []
            begins = opened or header or (closed and not thinking and markers.answer_headers)
            return [*pieces, (self.thinking, [])] if begins else pieces
        answering = (*markers.all_reopenings, *markers.end_variants, *markers.answer_headers)
        watched = markers.all_ends if thinking else answering
        return self._release(thinking, len(self._held) - self._begun(watched))

    def finish(self) -> list[Piece]:
        """What was held back, but for a header that is half-written."""
        self._finished = True
        held = tuple(self._held)
        if not self.thinking and any(h[: len(held)] == held for h in self._delimiters.answer_headers):
            return []
        return self._release(self.thinking, len(self._held))

    def _completed(self, variants: Iterable[Tokens]) -> int:
        recent = [*self._before, *self._held]
        return max((len(v) for v in variants if tuple(recent[-len(v) :]) == v), default=0)

    def _begun(self, variants: Iterable[Tokens]) -> int:
        """Length of the longest proper beginning of a marker that the held tokens end with."""
        recent = [*self._before, *self._held]
        sizes = (size for v in variants for size in range(1, len(v)) if tuple(recent[-size:]) == v[:size])
        return min(max(sizes, default=0), len(self._held))

    def _release(self, thinking: bool, count: int) -> list[Piece]:
        if count <= 0:
            return []
        piece, self._held = self._held[:count], self._held[count:]
        self._before = []
        return [(thinking, piece)]


class ThoughtText:
    """Turns the pieces of a :class:`ThoughtSplitter` into text, without white space around thought and answer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._thinking: bool | None = None
        self._any = {True: False, False: False}
        # White space is written when text follows it, and never at the beginning.
        self._space = ""
        self._fresh = True

    def read(self, pieces: Iterable[Piece]) -> list[tuple[bool, str]]:
        """The new text of thought and answer, as (whether it is thought, text)."""
        texts = []
        for thinking, ids in pieces:
            if not ids:
                self._thinking = None
                continue
            if thinking is not self._thinking:
                self._thinking = thinking
                self._stream = DecodeStream(skip_special_tokens=True)
                self._space, self._fresh = "\n\n" if self._any[thinking] else "", True
            text = "".join(self._stream.step(self._tokenizer, token) or "" for token in ids)
            if self._fresh:
                text = text.lstrip()
            body = text.rstrip()
            if body:
                texts.append((thinking, self._space + body))
                self._any[thinking], self._fresh = True, False
                self._space = text[len(body) :]
            else:
                self._space += text
        return texts


def _ends_with(prompt_ids: Sequence[int], delimiters: ThinkingDelimiters) -> bool:
    """Whether the lead that follows an open marker is there already."""
    lead = delimiters.lead_ids
    return tuple(prompt_ids[len(prompt_ids) - len(lead) :]) == lead
