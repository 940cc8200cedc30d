"""Which tokens open and close a thought, and where the assistant's turn begins, read from the tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from budgetctl.errors import DelimiterError
from budgetctl.families import FAMILIES, GENERIC_PAIRS, Family
from budgetctl.sequences import Tokens, can_overlap, longest_at, stands_inside
from budgetctl.spelling import encode, generation_prompts, spell, spell_blanks


@dataclass(frozen=True)
class ThinkingDelimiters:
    """Token sequences that bound a thought.

    Args:
        open_ids: canonical open sequence, () only when ``implicit``.
        natural_end_ids: every sequence that spells the close in some context, canonical first.
        forced_end_ids: what a forced close writes.
        turn_start_ids: assistant header (generation prompt up to the thought), () without a chat template.
        open_variants: every sequence that spells the open, canonical first.
        opened_by_template: the generation prompt itself ends inside an open thought.
        implicit: thinking starts at the turn start without an open marker.
        eos_ids: tokens that end the generation.
        family: name in ``FAMILIES``, or "detected" or "given".
        open_text: text of the open marker.
        close_text: text of the close marker.
        lead_ids: what the generation prompt writes after the open marker; not counted as thought.
        resumes_turn: the model writes ``turn_start_ids`` again after a close, in the same turn.
        tool_call_ids: sequences that begin a tool call; one inside a thought ends it, and belongs to what follows.
        open_refusal: index of the token of an open marker that the leak guard refuses: what comes before it begins
            other things too. The last by default.
        close_refusal: the same of a close marker.
        blank_ids: spellings of the white space that templates write between the markers of a thought that is switched
            off; in a thought that is closed in the prompt and has nothing else, it is not counted.
        answer_headers: sequences that begin a message of the answer, with and without ``turn_start_ids`` before; they
            are no part of its text.

    Raises:
        DelimiterError: when a sequence is empty, an open and a close sequence can overlap in a text (then where a
            thought ends would be ambiguous), one ends a thought inside the forced close (over the budget then), or the
            forced close ends the sequence.
    """

    open_ids: Tokens
    natural_end_ids: tuple[Tokens, ...]
    forced_end_ids: Tokens
    turn_start_ids: Tokens = ()
    open_variants: tuple[Tokens, ...] = ()
    opened_by_template: bool = False
    implicit: bool = False
    eos_ids: Tokens = ()
    family: str = "detected"
    open_text: str = ""
    close_text: str = ""
    lead_ids: Tokens = ()
    resumes_turn: bool = False
    tool_call_ids: tuple[Tokens, ...] = ()
    open_refusal: int = -1
    close_refusal: int = -1
    blank_ids: tuple[Tokens, ...] = ()
    answer_headers: tuple[Tokens, ...] = ()

    def __post_init__(self) -> None:
        if not self.forced_end_ids or not all(self.all_ends):
            raise DelimiterError(
                "the close of the thought has no tokens: expected at least one token id; give its ids"
            )
        if not self.implicit and not self.open_ids:
            raise DelimiterError(
                "no open marker and implicit=False: expected open_ids, or implicit=True; give one"
            )
        if set(self.forced_end_ids) & set(self.eos_ids):
            raise DelimiterError(
                f"the close {list(self.forced_end_ids)} holds an end-of-sequence token of {list(self.eos_ids)}: expected a "
                "close that an answer can follow; choose another close_text, or other eos ids"
            )
        for opening in self.all_opens:
            for end in self.all_ends:
                if can_overlap(opening, end):
                    raise DelimiterError(
                        f"open tokens {list(opening)} and close tokens {list(end)} can overlap: expected markers "
                        "that share no end; choose other open_text/close_text"
                    )
        for end in self.all_ends:
            if stands_inside(end, self.forced_end_ids):
                raise DelimiterError(
                    f"close tokens {list(end)} stand inside the forced close {list(self.forced_end_ids)}: expected a "
                    "forced close that ends the thought with its last token; choose another phrase before it"
                )

    @property
    def all_opens(self) -> tuple[Tokens, ...]:
        """Every open sequence, each once, canonical first."""
        known = (self.open_ids, *self.open_variants) if self.open_ids else self.open_variants
        return tuple(dict.fromkeys(known))

    @property
    def all_reopenings(self) -> tuple[Tokens, ...]:
        """Every sequence that may begin a further thought: open sequences, where ``resumes_turn`` also with
        ``turn_start_ids`` before."""
        return _with_turn_start(self.turn_start_ids, self.all_opens) if self.resumes_turn else self.all_opens

    @property
    def end_variants(self) -> tuple[Tokens, ...]:
        """Every close sequence, natural and forced, each once."""
        return tuple(dict.fromkeys((*self.natural_end_ids, self.forced_end_ids)))

    @property
    def all_ends(self) -> tuple[Tokens, ...]:
        """Everything that ends a thought: close sequences and the beginnings of tool calls, each once."""
        return tuple(dict.fromkeys((*self.end_variants, *self.tool_call_ids)))


def find_delimiters(
    tokenizer: PreTrainedTokenizerBase,
    *,
    family: str | None = None,
    open_text: str | None = None,
    close_text: str | None = None,
    implicit: bool | None = None,
    eos_token_id: int | Sequence[int] | None = None,
) -> ThinkingDelimiters:
    """Find the markers of the thought in the vocabulary and the chat template.

    Looked for in this order: what the caller gives, the known families, common marker pairs that are single tokens,
    common pairs that the chat template mentions. A marker that is no single token is spelled in several contexts,
    since byte-pair merges depend on the neighbours; a spelling may carry punctuation before the marker and white
    space around it.

    Args:
        tokenizer: the model's tokenizer.
        family: a name in ``FAMILIES``; by default it is recognised.
        open_text: open marker, for a model that is not recognised; overrides the family's.
        close_text: close marker, likewise.
        implicit: whether thinking starts at the turn start without an open marker.
        eos_token_id: ids that end the generation; the tokenizer's by default.

    Raises:
        DelimiterError: unknown family, no marker found, or a marker that the tokenizer cannot write.
    """
    name, entry = _choose(tokenizer, family, open_text, close_text, implicit)
    opens = spell(tokenizer, entry.open_text, *entry.other_opens) if entry.open_text else ()
    ends = spell(tokenizer, entry.close_text, *entry.other_closes)
    header: Tokens = ()
    lead: Tokens = ()
    opened = False
    for number, prompt in enumerate(generation_prompts(tokenizer, (*opens, *ends))):
        first, after_open = _split_prompt(prompt, opens, ends)
        if number == 0:
            header = prompt[:first]
            opened = after_open is not None
        if after_open is not None and not lead:
            lead = prompt[after_open:]
    return ThinkingDelimiters(
        open_ids=opens[0] if opens else (),
        natural_end_ids=ends,
        forced_end_ids=ends[0],
        turn_start_ids=header,
        open_variants=opens,
        opened_by_template=opened,
        implicit=(entry.implicit and not opened) if implicit is None else implicit,
        eos_ids=_end_of_sequence(tokenizer, eos_token_id),
        family=name,
        open_text=entry.open_text,
        close_text=entry.close_text,
        lead_ids=lead,
        resumes_turn=entry.resumes_turn,
        tool_call_ids=_tool_calls(tokenizer, entry.tool_calls),
        open_refusal=_refusal(tokenizer, entry.shared_open),
        close_refusal=_refusal(tokenizer, entry.shared_close),
        answer_headers=_with_turn_start(
            header, tuple(encode(tokenizer, text) for text in entry.answer_headers)
        ),
        blank_ids=spell_blanks(tokenizer, (entry.open_text, entry.close_text), opens, ends),
    )


def _choose(
    tokenizer: PreTrainedTokenizerBase,
    family: str | None,
    open_text: str | None,
    close_text: str | None,
    implicit: bool | None,
) -> tuple[str, Family]:
    """Name and marker texts to use."""
    if open_text == "" or close_text == "":
        raise DelimiterError(
            "open_text or close_text is empty: expected the marker's text; leave it out to detect it"
        )
    if family is not None and family not in FAMILIES:
        raise DelimiterError(
            f"unknown family {family!r}: expected one of {', '.join(FAMILIES)}; or pass open_text/close_text"
        )
    if open_text is not None and open_text == close_text:
        raise DelimiterError(
            f"open_text and close_text are both {open_text!r}: expected two different markers"
        )
    if family is not None:
        entry = FAMILIES[family]
        if open_text is not None:
            entry = replace(entry, open_text=open_text, other_opens=(), shared_open=None)
        if close_text is not None:
            entry = replace(entry, close_text=close_text, other_closes=(), shared_close=None)
        return family, entry
    if close_text is not None and (open_text is not None or implicit):
        return "given", Family(open_text or "", close_text, (), bool(implicit))
    if open_text is not None or close_text is not None:
        came, missing = ("open_text", "close_text") if close_text is None else ("close_text", "open_text")
        hint = "" if close_text is None else ", or implicit=True if thoughts begin without a marker"
        raise DelimiterError(f"{came} was given without {missing}: expected both; pass {missing}{hint}")
    return _detect(tokenizer)


def _detect(tokenizer: PreTrainedTokenizerBase) -> tuple[str, Family]:
    """The first known family or marker pair that the vocabulary or the chat template shows."""
    vocabulary = tokenizer.get_vocab()
    template = tokenizer.chat_template or ""
    if isinstance(template, dict):
        template = "\n".join(template.values())

    def shown(text: str) -> bool:
        return text in vocabulary or text in template

    for name, entry in FAMILIES.items():
        if all(shown(sign) for sign in entry.signs):
            return name, entry
    for opening, end in GENERIC_PAIRS:
        if opening in vocabulary and end in vocabulary:
            return "detected", Family(opening, end, ())
    for opening, end in GENERIC_PAIRS:
        if end in template:
            return "detected", Family(opening, end, ())
    pairs = dict.fromkeys((f.open_text.strip(), f.close_text) for f in FAMILIES.values())
    pairs |= dict.fromkeys(GENERIC_PAIRS)
    halves = [text for pair in pairs for text in pair if text in vocabulary and sum(map(shown, pair)) == 1]
    half = f", of which only {halves[0]!r} is there, without its partner" if halves else ""
    raise DelimiterError(
        f"no thought markers in this tokenizer: looked for {', '.join(opening for opening, _ in pairs)} in its "
        f'vocabulary and chat template{half}; pass open_text=... and close_text=..., or family="..."'
    )


def _tool_calls(tokenizer: PreTrainedTokenizerBase, texts: tuple[str, ...]) -> tuple[Tokens, ...]:
    """Those that begin with a token of their own; in plain text a thought may well mention them."""
    added = set(tokenizer.get_added_vocab().values())
    sequences = (encode(tokenizer, text) for text in texts)
    return tuple(ids for ids in sequences if ids and ids[0] in added)


def _with_turn_start(header: Tokens, sequences: tuple[Tokens, ...]) -> tuple[Tokens, ...]:
    return tuple(dict.fromkeys((*sequences, *(header + ids for ids in sequences))))


def _refusal(tokenizer: PreTrainedTokenizerBase, shared: str | None) -> int:
    return -1 if shared is None else len(encode(tokenizer, shared))


def _split_prompt(
    prompt: Tokens, opens: tuple[Tokens, ...], ends: tuple[Tokens, ...]
) -> tuple[int, int | None]:
    """Where the first marker begins, and the position after the open marker when the thought is left open."""
    first, after_open, at = len(prompt), None, 0
    while at < len(prompt):
        opening = longest_at(prompt, at, opens)
        length = opening or longest_at(prompt, at, ends)
        if length:
            first = min(first, at)
            after_open = at + length if opening else None
        at += length or 1
    return first, after_open


def _end_of_sequence(tokenizer: PreTrainedTokenizerBase, given: int | Sequence[int] | None) -> Tokens:
    found = tokenizer.eos_token_id if given is None else given
    if found is None:
        return ()
    ids = (found,) if isinstance(found, int) else tuple(dict.fromkeys(int(i) for i in found))
    return tuple(i for i in ids if i >= 0)  # continuous batching writes -1 for none


__all__ = ["FAMILIES", "Family", "ThinkingDelimiters", "Tokens", "find_delimiters"]
