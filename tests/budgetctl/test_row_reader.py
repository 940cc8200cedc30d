"""One row read on the host against the batched reading of its tokens."""

from __future__ import annotations

from dataclasses import fields

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.row_reader import RowReader
from budgetctl.state import ThinkingState, thinking_state
from tests.conformance.strategies import PROFILE, delimiters, prompts, texts


@settings(PROFILE, max_examples=150)
@given(data=st.data(), d=delimiters())
def test_every_prefix_is_read_as_the_batch_reads_it(data: st.DataObject, d: ThinkingDelimiters) -> None:
    prompt = data.draw(prompts(d)) or [7]
    row = [*prompt, *data.draw(texts(d, 0, 8))]
    reader = RowReader(d)
    for size in range(1, len(row) + 1):
        found = reader.read(row[:size], len(prompt))
        expected = thinking_state(torch.tensor([row[:size]]), d, prompt_length=len(prompt))
        for field in fields(ThinkingState):
            assert getattr(found, field.name) == getattr(expected, field.name)[0], field.name
