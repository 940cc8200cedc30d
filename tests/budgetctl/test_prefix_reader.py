"""Reading on from the step before gives what reading all gives, whatever order the calls come in."""

from __future__ import annotations

import random
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from budgetctl import prefix_reader
from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.prefix_hash import hash_prefix
from budgetctl.prefix_reader import PrefixReader, Reading, read_rows
from budgetctl.protect import Spans

BOT, HEAD, OPEN, TOOL, VOCAB = 8, 9, 10, 7, 18
KINDS = ("opened by the model", "opened by the template", "spelled by three tokens", "spelled, template",
         "closed by a phrase", "implicit", "tool calls")  # fmt: skip
SPANS = Spans(torch.arange(VOCAB) % 5 == 0, (5,), None)


def delimiters_of(kind: str, markers: dict[str, ThinkingDelimiters]) -> ThinkingDelimiters:
    if kind == "tool calls":
        return replace(markers["opened by the template"], tool_call_ids=((TOOL, 6),))
    return markers[kind]


def same(one: Reading, other: Reading) -> bool:
    pairs = [(getattr(one.state, f.name), getattr(other.state, f.name)) for f in fields(one.state)]
    pairs += [(getattr(one, name), getattr(other, name)) for name in ("total", "start_key", "fence_marks")]
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)


def write(rng: random.Random, d: ThinkingDelimiters, rows: int, tokens: int) -> tuple[torch.Tensor, int]:
    """Prompts of several lengths and what follows them: mostly plain tokens, markers now and then."""
    chunks = [*d.all_opens, *d.all_ends, d.lead_ids, d.turn_start_ids, *((token,) for token in d.eos_ids)]
    prompts, texts = [], []
    for _ in range(rows):
        opening = (*d.open_ids, *d.lead_ids) if d.opened_by_template and rng.random() < 0.9 else ()
        prompts.append([*(rng.randrange(2, 8) for _ in range(rng.randrange(4))), BOT, HEAD, *opening])
        text: list[int] = []
        while len(text) < tokens:
            text += rng.choice(chunks) if rng.random() < 0.08 else (rng.randrange(2, VOCAB),)
        texts.append(text[:tokens])
    width = max(map(len, prompts))
    padded = [[0] * (width - len(p)) + p + text for p, text in zip(prompts, texts, strict=True)]
    return torch.tensor(padded), width


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(12))
def test_reading_on_is_reading_all(kind: str, seed: int, markers: Any) -> None:
    """Rows change places as beams do, a call is repeated, goes back, or comes several tokens later."""
    rng = random.Random(seed)
    d = delimiters_of(kind, markers)
    ids, prompt = write(rng, d, rows=rng.randrange(1, 5), tokens=70)
    spans = SPANS if seed % 2 else None
    reader = PrefixReader(d)
    column = prompt
    while column <= ids.shape[1]:
        if rng.random() < 0.2:
            ids = ids[torch.tensor([rng.randrange(len(ids)) for _ in range(len(ids))])]
        rows = ids[:, :column].clone()
        found = reader.read(rows, prompt, spans)
        assert same(found, read_rows(rows, d, prompt, spans)), column
        rows.fill_(3)  # what the caller does with its tensor afterwards is its own affair
        step = rng.random()
        column += 1 if step < 0.85 else 0 if step < 0.9 else 3 if step < 0.95 else -5
        column = max(column, prompt)


def test_plain_tokens_are_not_read_twice(markers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where rows change places and one is finished and padded."""
    lengths: list[int] = []
    read = prefix_reader.read_rows

    def counting(input_ids: torch.Tensor, *others: Any) -> Reading:
        lengths.append(input_ids.shape[1])
        return read(input_ids, *others)

    monkeypatch.setattr(prefix_reader, "read_rows", counting)
    d = markers["opened by the template"]
    opening = [BOT, HEAD, OPEN, *d.lead_ids]
    torch.manual_seed(0)
    ids = torch.cat([torch.tensor(opening).expand(3, -1), torch.randint(5, 8, (3, 200))], 1)
    ids[1, 50:] = d.eos_ids[0]
    reader = PrefixReader(d)
    for column in range(len(opening), ids.shape[1] + 1):
        rows = ids[torch.tensor([2, 1, 0])] if column % 2 else ids
        reader.read(rows[:, :column], len(opening), None)
    assert len(lengths) <= 5


def test_prompt_lengths_of_their_own_may_change(markers: Any) -> None:
    """As in continuous batching, where other requests take the rows."""
    d = markers["opened by the template"]
    ids, prompt = write(random.Random(5), d, rows=3, tokens=40)
    reader = PrefixReader(d)
    lengths = torch.full((3,), prompt)
    for column in range(prompt, ids.shape[1]):
        if column == prompt + 20:
            lengths[1] = prompt + 6
        found = reader.read(ids[:, :column], lengths, None)
        assert same(found, read_rows(ids[:, :column], d, lengths, None))


def test_keys_are_those_of_the_prefixes(markers: Any) -> None:
    d = markers["spelled, template"]
    ids, prompt = write(random.Random(2), d, rows=4, tokens=30)
    found = PrefixReader(d).read(ids, prompt, None)
    assert torch.equal(found.start_key, hash_prefix(ids, found.state.thought_start))
