"""Rows that are read on from what is known of their slots, against the same rows read from their first token on."""

from __future__ import annotations

from dataclasses import fields
from random import Random
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.integrations.vllm.host_reader import HostReader
from budgetctl.integrations.vllm.memory import hash_rows
from budgetctl.prefix_hash import hash_of
from budgetctl.prefix_reader import read_rows
from budgetctl.state import ThinkingState
from tests.conformance.strategies import PROFILE, VOCAB, WORDS, delimiters, prompts

SLOTS, STEPS = 4, 40


@settings(PROFILE, max_examples=12)
@given(data=st.data(), d=delimiters(), seed=st.integers(0, 10_000))
def test_any_rows_at_any_step(data: st.DataObject, d: ThinkingDelimiters, seed: int, boundaries: Any) -> None:
    """Some rows are left out of a step, asked for twice, taken over by another request, or get several tokens."""
    reader, rng = HostReader(d, boundaries.spans), Random(seed)
    reader.grow(SLOTS)
    texts = [data.draw(prompts(d)) or [7] for _ in range(3)]
    rows = [list(rng.choice(texts)) for _ in range(SLOTS)]
    lengths = [len(row) for row in rows]
    salts = [rng.randrange(1 << 40) for _ in range(SLOTS)]
    table = np.zeros((SLOTS, reader.tail + 500), dtype=np.int64)
    markers = (*d.all_opens, *d.all_ends, d.forced_end_ids, d.lead_ids or (2,))
    pending: list[list[int]] = [[] for _ in range(SLOTS)]
    for _ in range(STEPS):
        chosen = rng.sample(range(SLOTS), rng.randrange(1, SLOTS + 1))
        for slot in chosen:
            if rng.random() < 0.03:
                rows[slot] = list(rng.choice(texts))
                lengths[slot], pending[slot] = len(rows[slot]), []
                reader.forget(slot)
            for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 9))):
                if not pending[slot]:
                    plain = rng.random() < 0.8
                    pending[slot] = [rng.choice(WORDS)] if plain else list(rng.choice(markers))
                    pending[slot] = pending[slot] if rng.random() < 0.9 else [rng.randrange(VOCAB)]
                rows[slot].append(pending[slot].pop(0))
            table[slot, reader.tail : reader.tail + len(rows[slot])] = rows[slot]
        of = {name: np.array(values)[chosen] for name, values in (("prompts", lengths), ("salts", salts))}
        sizes = np.array([len(rows[slot]) for slot in chosen])
        found = reader.reading(
            reader.read(table, reader.tail, np.array(chosen), sizes, of["prompts"], of["salts"]),
            torch.device("cpu"),
        )
        for at, slot in enumerate(chosen):
            row = torch.tensor([rows[slot]])
            own = read_rows(row, d, lengths[slot], boundaries.spans)
            for field in fields(ThinkingState):
                told, expected = (getattr(reading.state, field.name) for reading in (found, own))
                assert told[at] == expected[0], field.name
                assert told.dtype == expected.dtype
            key = hash_of(
                hash_rows(row, torch.tensor([0]), own.state.thought_start), torch.tensor(salts[slot])
            )
            assert found.start_key[at] == key[0]
            assert found.fence_marks[at] == own.fence_marks[0]
