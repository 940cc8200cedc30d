"""What a completion holds, read from its token ids: thought, close, answer.

TRL hands reward functions decoded completions without special tokens, where the markers of a thought are gone for many
tokenizers; the ids are what counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from budgetctl.delimiters import ThinkingDelimiters, find_delimiters
from budgetctl.segments import split_sequence


@dataclass(frozen=True)
class Completion:
    """One completion taken apart; counts are in tokens.

    Args:
        thinking_tokens: tokens of the thought, markers left out.
        answer_tokens: tokens after the close, without the end of sequence; 0 while the thought is open.
        total_tokens: all of the completion up to and with the end of sequence.
        closed: the thought was ended.
        finished: the end of sequence was written.
        answer: text of the answer, empty while the thought is open.
        stray_markers: closes of a thought that stand in the answer.
        thought_ids: the thinking tokens.
    """

    thinking_tokens: int
    answer_tokens: int
    total_tokens: int
    closed: bool
    finished: bool
    answer: str
    stray_markers: int
    thought_ids: tuple[int, ...]


class CompletionReader:
    """Reads completions of one model.

    Args:
        tokenizer: the model's.
        delimiters: markers of the thought; found by the tokenizer and its chat template when left out.
        thought_open: whether the generation prompt ends inside an open thought; by default as the chat template does.

    Raises:
        DelimiterError: the tokenizer shows no markers.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        delimiters: ThinkingDelimiters | None = None,
        thought_open: bool | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.delimiters = find_delimiters(tokenizer) if delimiters is None else delimiters
        opened = self.delimiters.opened_by_template if thought_open is None else thought_open
        opening = (*self.delimiters.open_ids, *self.delimiters.lead_ids) if opened else ()
        self.header = (*self.delimiters.turn_start_ids, *opening)

    def read(self, ids: Sequence[int]) -> Completion:
        """Take one completion apart.

        Args:
            ids: the completion's tokens, without the prompt; padding after the end of sequence is left out.
        """
        end = next((at + 1 for at, token in enumerate(ids) if token in self.delimiters.eos_ids), len(ids))
        parts = split_sequence((*self.header, *ids), len(self.header), self.delimiters)
        closed = parts.close_span is not None
        return Completion(
            thinking_tokens=len(parts.thought),
            answer_tokens=len(parts.answer) if closed else 0,
            total_tokens=end,
            closed=closed,
            finished=parts.finished,
            answer=self.tokenizer.decode(list(parts.answer), skip_special_tokens=True) if closed else "",
            stray_markers=parts.stray_markers,
            thought_ids=parts.thought,
        )

    def read_all(self, completion_ids: Sequence[Sequence[int]]) -> list[Completion]:
        """Each of ``completion_ids``."""
        return [self.read(ids) for ids in completion_ids]
