"""The step that a prefix is in: against a walk over each row, and read on token by token as from the beginning."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetctl.limits import RowLimits
from budgetctl.plan.row_plans import RowPlans, SpelledStep
from budgetctl.plan.step_reader import StepReader, steps_begun
from budgetctl.prefix_reader import PrefixReader

LINE, A, B, BOT, HEAD, OPEN, CLOSE = 2, 5, 6, 8, 9, 10, 11
CPU = torch.device("cpu")
LIMITS = RowLimits.build(thinking_budget=40)


def walked(row: list[int], start: int, steps: tuple[SpelledStep, ...]) -> list[int]:
    """The step of each column and of the next token, by looking at each column for each mark."""
    first = 1 if steps and not steps[0].marks else 0
    found = [first] * (len(row) + 1)
    for end in range(start, len(row)):
        for number, step in enumerate(steps, start=1):
            for mark, breaks in zip(step.marks, step.breaks, strict=True):
                begin = end - len(mark) + 1
                if begin < start or tuple(row[begin : end + 1]) != mark:
                    continue
                if begin == start or breaks or row[begin - 1] == LINE:
                    found[begin:] = [max(number, old) for old in found[begin:]]
    return found


TEXT = st.lists(st.sampled_from((LINE, LINE, A, A, B, B, 4, 12)), max_size=20)
PLAN = st.sampled_from((None, [1, 1], [1, 1, 1], [1, 1, 1, 1]))


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(TEXT, PLAN, st.booleans()), min_size=1, max_size=4))
def test_against_a_walk(rows: list[Any], markers: Any, row_plans: Any) -> None:
    prompt = [A, LINE, A, BOT, HEAD, OPEN]
    width = max(len(text) for text, _, _ in rows)
    ids = torch.tensor([[0] * 2 + prompt + text + [4] * (width - len(text)) for text, _, _ in rows])
    made: RowPlans = row_plans([plan for _, plan, _ in rows], [headed for _, _, headed in rows])
    plans = made.on(len(rows), CPU, LIMITS)
    begin = 2 + len(prompt)
    start = torch.full((len(rows),), begin)
    found = steps_begun(ids, start, plans, made.line)
    for row, steps, numbers in zip(ids.tolist(), made.spelled, found.tolist(), strict=True):
        assert numbers == walked(row, begin, steps)

    # Read on token by token, with steps back and the same again; a fresh reader gives the same.
    reader, prefixes = StepReader(made), PrefixReader(markers["opened by the model"])
    for stop in [*range(begin, ids.shape[1] + 1), begin + width // 2, ids.shape[1], ids.shape[1]]:
        prefix = ids[:, :stop]
        reading = prefixes.read(prefix, begin, None)
        fresh = StepReader(made).read(prefix, reading, plans)
        assert torch.equal(reader.read(prefix, reading, plans), fresh)
        assert fresh.tolist() == [
            walked(row[:stop], begin, s)[-1] for row, s in zip(ids.tolist(), made.spelled, strict=True)
        ]


def test_rows_that_change_places_and_plans_that_do_not(markers: Any, row_plans: Any) -> None:
    """Beams of one request: row 0 goes on from row 1's prefix."""
    made = row_plans([[1, 1, 1]])
    plans = made.on(2, CPU, LIMITS)
    rows = torch.tensor([[BOT, HEAD, OPEN, 4, LINE, A], [BOT, HEAD, OPEN, 4, 4, 4]])
    reader, prefixes = StepReader(made), PrefixReader(markers["opened by the model"])
    for ids in (rows, torch.cat([rows.flip(0), torch.tensor([[4], [LINE]])], 1)):
        reading = prefixes.read(ids, 3, None)
        assert torch.equal(reader.read(ids, reading, plans), StepReader(made).read(ids, reading, plans))
    assert reader.read(ids, reading, plans).tolist() == [1, 2]


def test_marks_in_the_prompt_or_inside_a_line_begin_nothing(row_plans: Any) -> None:
    made = row_plans([[1, 1]])
    plans = made.on(1, CPU, LIMITS)
    ids = torch.tensor([[LINE, A, BOT, HEAD, OPEN, 4, A, LINE, 4, A, 4]])
    assert steps_begun(ids, torch.tensor([5]), plans, made.line).tolist() == [[1] * 12]
    # As the thought's very first token it does.
    assert steps_begun(ids[:, :7], torch.tensor([6]), plans, made.line)[0, -2:].tolist() == [2, 2]
