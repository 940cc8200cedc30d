"""How a tokenizer spells a marker in different contexts, and the generation prompt that its chat template writes."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from budgetctl.errors import DelimiterError

# What may stand before and after a marker; merges across the boundary make other tokens of it.
_BEFORE = (
    "",
    "\n",
    "\n\n",
    " ",
    ".",
    ".\n",
    ".\n\n",
    "a",
    "!",
    "?",
    ":",
    ")",
    "]",
    "}",
    "*",
    "`",
    '"',
    "$",
    "。",
)
_AFTER = ("", "\n", "\n\n", " a", "a")
# White space that templates put between the markers where they switch the thought off.
_BLANKS = ("\n", "\n\n")
# Switches by which templates open or leave out the thought.
_SWITCHES: tuple[dict[str, bool], ...] = ({}, {"enable_thinking": True}, {"thinking": True})


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Token ids of ``text`` alone, without added special tokens."""
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def decode(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> str:
    """Text of ``ids`` with special tokens shown and spaces left as they are."""
    text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text if isinstance(text, str) else "".join(text)


def spell(tokenizer: PreTrainedTokenizerBase, text: str, *others: str) -> tuple[tuple[int, ...], ...]:
    """Every token sequence that spells ``text`` or one of ``others`` in some context, the one to write first.

    A sequence whose tokens also carry a letter or digit before the text, or anything but white space after it, is
    left out: taking it for the marker would drop text.

    Raises:
        DelimiterError: when no sequence decodes to ``text``, or none to one of ``others``.
    """
    return tuple(dict.fromkeys(run for each in (text, *others) for run in _spell(tokenizer, each)))


def _spell(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[tuple[int, ...], ...]:
    found: dict[tuple[int, ...], None] = {}
    for before in _BEFORE:
        for after in _AFTER:
            run = _run_of(tokenizer, encode(tokenizer, before + text + after), text)
            if run is not None:
                found[run] = None
    exact = [run for run in found if decode(tokenizer, run) == text]
    if not exact:
        raise DelimiterError(
            f"the tokenizer does not write {text!r} back as it is: expected tokens that decode to it; "
            "pass open_text/close_text that this tokenizer can spell"
        )
    # A tokenizer that marks word starts spells a lone text with a space that would show up inside a thought.
    left = encode(tokenizer, "a\n")
    inside = [run for run in exact if decode(tokenizer, left + run) == decode(tokenizer, left) + text]
    canonical = (inside or exact)[0]
    return (canonical, *(run for run in found if run != canonical))


def _run_of(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...], text: str) -> tuple[int, ...] | None:
    """The shortest run of ``ids`` whose text holds ``text``, if it holds nothing else that matters."""
    stop = next((j for j in range(1, len(ids) + 1) if text in decode(tokenizer, ids[:j])), None)
    if stop is None:
        return None
    start = next(i for i in range(stop - 1, -1, -1) if i == 0 or text in decode(tokenizer, ids[i:stop]))
    run = ids[start:stop]
    before, _, after = decode(tokenizer, run).partition(text)
    return None if after.strip() or any(letter.isalnum() for letter in before) else run


def spell_blanks(
    tokenizer: PreTrainedTokenizerBase,
    texts: tuple[str, str],
    opens: tuple[tuple[int, ...], ...],
    ends: tuple[tuple[int, ...], ...],
) -> tuple[tuple[int, ...], ...]:
    """Every token sequence of white space alone that stands between the markers of an empty thought.

    Args:
        tokenizer: the model's tokenizer.
        texts: the open and the close marker.
        opens: every spelling of the open marker.
        ends: every spelling of the close marker.
    """
    found: dict[tuple[int, ...], None] = {}
    for blank in _BLANKS:
        for after in ("", *_BLANKS):
            ids = encode(tokenizer, texts[0] + blank + texts[1] + after)
            begin = max((len(v) for v in opens if ids[: len(v)] == v), default=0)
            stops = (i for i in range(begin, len(ids)) if any(ids[i : i + len(v)] == v for v in ends))
            between = ids[begin : next(stops, begin)] if begin else ()
            if between and not decode(tokenizer, between).strip():
                found[between] = None
    return tuple(found)


def generation_prompts(
    tokenizer: PreTrainedTokenizerBase, markers: tuple[tuple[int, ...], ...]
) -> list[tuple[int, ...]]:
    """Token ids that the chat template adds for the assistant's turn: as it is by default, then switched to think.

    Each begins with the assistant's header, so never with one of the ``markers`` of a thought.
    """
    if not getattr(tokenizer, "chat_template", None):
        return []
    return [prompt for switch in _SWITCHES if (prompt := _generation_prompt(tokenizer, markers, switch))]


def _generation_prompt(
    tokenizer: PreTrainedTokenizerBase, markers: tuple[tuple[int, ...], ...], switch: dict[str, bool]
) -> tuple[int, ...]:
    with_prompt = encode(tokenizer, _render(tokenizer, ["hi"], add_generation_prompt=True, **switch))
    without = encode(tokenizer, _render(tokenizer, ["hi"], add_generation_prompt=False, **switch))
    added = with_prompt[_common(with_prompt, without) :]
    if added and not any(added[: len(marker)] == marker for marker in markers):
        return added
    # The template writes the same either way: the header is what stands between a question and its reply.
    text = _render(tokenizer, ["QUESTION", "REPLY"], add_generation_prompt=False, **switch)
    asked, answered = text.rfind("QUESTION"), text.rfind("REPLY")
    if not added and 0 <= asked < answered:
        asked_ids = encode(tokenizer, text[: asked + len("QUESTION")])
        header = encode(tokenizer, text[:answered])
        header = header[_common(header, asked_ids) :]
        places = [i for i in range(len(with_prompt)) if header and with_prompt[i : i + len(header)] == header]
        if places:
            return with_prompt[places[-1] :]
    # Or the header is always there and goes on to a thought: it is what follows the question.
    text = _render(tokenizer, ["QUESTION"], add_generation_prompt=True, **switch)
    asked_ids = encode(tokenizer, text[: text.rfind("QUESTION") + len("QUESTION")])
    follows = encode(tokenizer, text)
    follows = follows[_common(follows, asked_ids) :]
    held = any(follows[i : i + len(m)] == m for m in markers for i in range(len(follows)))
    return follows if held else ()


def _render(tokenizer: PreTrainedTokenizerBase, turns: list[str], **options: bool) -> str:
    """Text of a conversation of user and assistant ``turns``; some templates only take content in parts."""
    roles = ("user", "assistant")
    plain = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in plain]
    reason = ""
    for messages in (plain, parts):
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
        except Exception as error:  # a template can raise anything
            reason = reason or f"{type(error).__name__}: {' '.join(str(error).split())}"
    raise DelimiterError(
        f"the chat template cannot render a question and its reply ({reason}): expected a template for user and "
        "assistant messages; repair tokenizer.chat_template"
    )


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Length of the longest common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
