"""Random markers, rows rich in whole and broken ones, and logits that are a function of the prefix, for Hypothesis.

The vocabulary is that of tests/conftest.py: 0 pads, 1 and 17 may end the sequence, 2 ends a line, 3 a sentence, 7 to 9
are the user's and the header's, 5, 6 and 10 to 16 are for words and markers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st

from budgetctl.delimiters import ThinkingDelimiters, Tokens
from budgetctl.errors import DelimiterError
from tests.reference_state import half_written

PAD, EOS, LINE, A, B, USER, BOT, HEAD, TOOL, EOT, VOCAB = 0, 1, 2, 5, 6, 7, 8, 9, 16, 17, 18
OPENS, CLOSES, WORDS = (10, 11), (12, 13), (LINE, A, B)

#: Other work on the machine must not fail a test; a failure prints what reproduces it.
PROFILE = settings(deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def sequences(draw: st.DrawFn, ends: Sequence[int]) -> Tokens:
    """A marker of 1 to 4 tokens that begins and ends with one of ``ends``, most often with itself inside itself."""
    inner = st.sampled_from((*ends, *ends, *OPENS, *CLOSES, *WORDS))
    edge = st.sampled_from(ends)
    size = draw(st.sampled_from((1, 1, 2, 3, 3, 4)))
    middle = [draw(inner) for _ in range(size - 2)]
    return (draw(edge), *middle, draw(edge)) if size > 1 else (draw(edge),)


@st.composite
def delimiters(draw: st.DrawFn) -> ThinkingDelimiters:
    """Any set of markers that the constructor takes. Those that end a turn's messages as Harmony's do are left out."""
    own = draw(st.booleans())  # markers of tokens that are words too, such as a phrase before the close
    opens = (*OPENS, A) if own else OPENS
    closes = (*CLOSES, B, LINE) if own else CLOSES
    implicit = draw(st.integers(0, 4)) == 0
    opening: list[Tokens] = draw(st.lists(sequences(opens), min_size=1, max_size=3))
    ends: list[Tokens] = draw(st.lists(sequences(closes), min_size=1, max_size=3))
    if draw(
        st.booleans()
    ):  # some spellings share their beginning or their end, as byte-pair merges make them
        ends.append((draw(st.sampled_from(closes)), *ends[0][1:]))
        ends.append((*ends[0][:-1], draw(st.sampled_from(closes))))
    tools = draw(st.sampled_from([(), (), ((TOOL,),), ((TOOL, A),), ((TOOL,), (TOOL, TOOL, B))]))
    if implicit and draw(st.booleans()):
        opening = []
    try:
        return ThinkingDelimiters(
            open_ids=opening[0] if opening else (),
            natural_end_ids=tuple(draw(st.permutations(ends))),
            forced_end_ids=draw(sequences(closes)) if draw(st.integers(0, 2)) == 0 else ends[0],
            turn_start_ids=draw(st.sampled_from([(BOT, HEAD), (BOT, HEAD), (HEAD,), (BOT, BOT, HEAD), ()])),
            open_variants=tuple(opening),
            opened_by_template=bool(opening) and draw(st.booleans()),
            implicit=implicit,
            eos_ids=draw(st.sampled_from([(EOS,), (EOS, EOT), ()])),
            lead_ids=draw(st.sampled_from([(), (), (LINE,), (LINE, A)])),
            tool_call_ids=tools,
            open_refusal=draw(st.sampled_from([-1, -1, -1, 1])),
            close_refusal=draw(st.sampled_from([-1, -1, -1, 1])),
            blank_ids=draw(st.sampled_from([(), ((LINE,), (LINE, LINE))])),
        )
    except DelimiterError:
        assume(False)
        raise


def chunks(d: ThinkingDelimiters) -> st.SearchStrategy[Tokens]:
    """Whole markers, beginnings of markers, headers, words, ends of sequence."""
    whole = [*d.all_opens, *d.all_ends]
    begun = [marker[:size] for marker in whole for size in range(1, len(marker))]
    words = [(A,), (B,), (LINE,), (A, B), (USER,), d.lead_ids or (A,)]
    rare = [d.turn_start_ids or (HEAD,), (d.eos_ids or (EOS,))[-1:], (PAD,), (TOOL,)]
    kinds = [st.sampled_from(whole)] * 3 + [st.sampled_from(words)] * 3 + [st.sampled_from(rare)]
    return st.one_of(*kinds, *([st.sampled_from(begun)] if begun else []))


@st.composite
def texts(draw: st.DrawFn, d: ThinkingDelimiters, least: int, most: int) -> list[int]:
    return [token for chunk in draw(st.lists(chunks(d), min_size=least, max_size=most)) for token in chunk]


@st.composite
def prompts(draw: st.DrawFn, d: ThinkingDelimiters, *, chat: bool = False) -> list[int]:
    """A conversation with finished turns in it and markers that the user typed, the header, the template's marker, and
    sometimes a thought that has begun or is closed already, or that the template leaves blank. ``chat``: always with a
    header, or nothing at all."""
    if chat and not d.turn_start_ids:
        return []
    prompt = draw(texts(d, 0, 5))
    if draw(st.integers(0, 3)) == 0:
        prompt = [*d.turn_start_ids, *prompt, *d.eos_ids[-1:]]
    if not chat and draw(st.integers(0, 3)) == 0:
        return prompt
    prompt += d.turn_start_ids
    ending = draw(st.sampled_from(("asked", "asked", "asked", "begun", "blank")))
    if ending == "blank":
        white = draw(st.sampled_from(d.blank_ids or ((), (LINE,))))
        return [*prompt, *d.open_ids, *white, *d.forced_end_ids]
    if d.opened_by_template and (chat or draw(st.booleans())):
        prompt += (*d.open_ids, *d.lead_ids)
    if ending == "begun":
        prompt += [token for token in draw(texts(d, 1, 4)) if token not in d.eos_ids]
    return prompt


@dataclass
class Batch:
    """Left-padded rows [B, T] with a prompt of ``width`` columns, of which ``padding`` [B] are none of the row's."""

    ids: torch.Tensor
    delimiters: ThinkingDelimiters
    width: int
    padding: list[int]

    def prefixes(self) -> Iterator[torch.Tensor]:
        for stop in range(self.width, self.ids.shape[1] + 1):
            yield self.ids[:, :stop]


def padded(rows: Sequence[Sequence[int]], pad: int = PAD) -> torch.Tensor:
    """[B, T] int64, left-padded."""
    width = max(map(len, rows))
    return torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], dtype=torch.int64)


@st.composite
def batches(
    draw: st.DrawFn,
    *,
    rows: int | None = None,
    most: int = 10,
    words: bool = False,
    resumes: bool = True,
    chat: bool = False,
    empty: bool = False,
    pads: Sequence[int] = (PAD, EOS, A),
) -> Batch:
    """Prompts of several widths, maybe ``empty``, and as many tokens after each; with long stretches of plain ``words``
    where asked, and then sometimes the same text after every prompt."""
    d = draw(delimiters())
    if resumes and draw(st.integers(0, 5)) == 0:
        d = replace(d, resumes_turn=True)
    count = draw(st.integers(1, 3)) if rows is None else rows
    least = [] if empty else [USER]
    given = [draw(prompts(d, chat=chat)) or least for _ in range(count)]
    written = []
    for _ in range(count):
        text = [*(d.open_ids if draw(st.booleans()) else ()), *draw(texts(d, most // 2, most))]
        if words:
            plain = draw(st.lists(st.sampled_from((3, 4, 14, 15, A)), min_size=6, max_size=20))
            cut = draw(st.integers(0, len(text)))
            text[cut:cut] = plain
        written.append(text)
    if words and draw(st.booleans()):
        written = written[:1] * count
    length = min(map(len, written))
    prompt = padded(given, draw(st.sampled_from(pads)))
    ids = torch.cat([prompt, padded([text[:length] for text in written])], 1)
    width = prompt.shape[1]
    return Batch(ids, d, width, [width - len(row) for row in given])


@st.composite
def openings(draw: st.DrawFn, rows: int) -> Batch:
    """Prompts alone. A lead with whose end a close begins is left out: how much of it is thought is then a matter of what
    follows, and a minimum or a reserve may be off by its length."""
    d = draw(delimiters())
    ends = [d.lead_ids[-size:] for size in range(1, len(d.lead_ids) + 1)]
    assume(not any(end[: len(part)] == part for part in ends for end in d.all_ends))
    given = [draw(prompts(d)) or [USER] for _ in range(rows)]
    if d.open_refusal >= 0:  # a prompt that is past the token that is refused will open the thought
        begun = [half_written(prompt, marker) for prompt in given for marker in d.all_opens]
        assume(max(begun, default=0) <= d.open_refusal)
    ids = padded(given)
    return Batch(ids, d, ids.shape[1], [ids.shape[1] - len(row) for row in given])


@st.composite
def limits(draw: st.DrawFn, d: ThinkingDelimiters, *, forecast: bool) -> dict[str, Any]:
    """The knobs of one row, which do not contradict each other; sometimes none."""
    asked: dict[str, Any] = dict.fromkeys(
        ("thinking_budget", "min_thinking_tokens", "thinking_target", "target_tolerance", "effort")
    )
    asked |= {
        "max_new_tokens": None,
        "answer_reserve": None,
        "temperature": draw(st.sampled_from((1.0, 0.5))),
    }
    effort = ("effort", "effort", "effort") if forecast else ()
    kind = draw(st.sampled_from(("budget", "budget", "budget", "free", "target", None, *effort)))
    if kind == "budget":
        asked["thinking_budget"] = draw(st.integers(0, 12))
        asked["min_thinking_tokens"] = (
            draw(st.integers(0, asked["thinking_budget"])) if draw(st.booleans()) else None
        )
    elif kind == "free" and draw(st.booleans()):
        asked["min_thinking_tokens"] = draw(st.integers(0, 9))
    elif kind == "target":
        asked |= {"thinking_target": draw(st.integers(1, 10)), "target_tolerance": draw(st.integers(0, 3))}
    elif kind == "effort":
        asked["effort"] = draw(st.sampled_from(("low", 0.3, "high", "xhigh", "max", "none")))
    if kind is not None and draw(st.integers(0, 2)) == 0:
        asked["answer_reserve"] = draw(st.integers(0, 5))
        room = draw(st.integers(0, 16))
        asked["max_new_tokens"] = asked["answer_reserve"] + len(d.forced_end_ids) + room
    return asked


def logits_of(
    ids: torch.Tensor, seed: int, d: ThinkingDelimiters, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """Logits [B, V] after prefixes [B, T]: random, a function of the row without its padding, with likely markers."""
    generator = torch.Generator().manual_seed(seed)
    table = 2 * torch.randn(97, VOCAB, generator=generator, dtype=torch.float64)
    markers = sorted({token for marker in (*d.all_opens, *d.all_ends) for token in marker})
    table[:, markers] += 1.5
    table[:, list(d.eos_ids)] -= 1.0
    table[:, [PAD, USER, BOT, HEAD]] -= 4.0
    rows = [tuple(row) for row in ids.tolist()]
    at = [hash(row[next((i for i, t in enumerate(row) if t != PAD), len(row)) :]) % 97 for row in rows]
    return table[at].to(dtype)
