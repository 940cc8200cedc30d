"""Random walks: whatever a model writes from the controller's scores, the promises hold, counted by a plain walk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

from budgetctl.controller import BudgetController
from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.extension import Extension
from budgetctl.protect import Spans
from tests.conformance.strategies import PAD, PROFILE, VOCAB, limits, logits_of, openings
from tests.reference_state import Walk, walk

ROWS, STEPS = 4, 24
FENCE, BYTE, PHRASE = 4, 3, (14, 15)


@dataclass
class Row:
    """One row of a walk: what was asked for it, where it stood before each token and after the last, and whether its
    scores ever differed from the model's."""

    asked: dict[str, Any]
    stood: list[Walk]
    touched: bool

    @property
    def given(self) -> Walk:
        return self.stood[0]

    @property
    def cap(self) -> int | None:
        if self.asked["thinking_target"] is not None:
            return self.asked["thinking_target"] + self.asked["target_tolerance"]
        return 0 if self.asked["effort"] == "none" else self.asked["thinking_budget"]

    @property
    def minimum(self) -> int:
        if self.asked["thinking_target"] is not None:
            return self.asked["thinking_target"] - self.asked["target_tolerance"]
        return self.asked["min_thinking_tokens"] or 0

    @property
    def thinking_ends(self) -> int | None:
        """New tokens after which no thought is open."""
        length = self.asked["max_new_tokens"]
        return None if length is None else length - self.asked["answer_reserve"]


def write(
    controller: BudgetController, ids: torch.Tensor, asked: list[dict[str, Any]], seed: int, greedy: bool
) -> list[Row]:
    """Rows of ``STEPS`` tokens chosen from the controller's scores, up to the end of sequence or ``max_new_tokens``."""
    d, width = controller.delimiters, ids.shape[1]
    generator = torch.Generator().manual_seed(seed)
    rows = [Row(limit, [], False) for limit in asked]
    most = [limit["max_new_tokens"] or STEPS for limit in asked]
    for step in range(STEPS + 1):
        for at, tokens in enumerate(ids.tolist()):
            if not rows[at].stood or (not rows[at].stood[-1].finished and step <= most[at]):
                rows[at].stood.append(walk(tokens, d, width))
        logits = logits_of(ids, seed, d)
        scores = controller(ids, logits)
        assert not scores.isnan().any()
        assert not scores.isposinf().any()
        assert scores.isfinite().any(1).all(), "a row without any token"
        for row, before, after in zip(rows, logits, scores, strict=True):
            row.touched |= not torch.equal(before.view(torch.int64), after.view(torch.int64))
        drawn = torch.multinomial(scores.softmax(1), 1, generator=generator)
        chosen = scores.argmax(1, keepdim=True) if greedy else drawn
        done = torch.tensor([row.stood[-1].finished for row in rows])[:, None]
        ids = torch.cat([ids, torch.where(done, PAD, chosen)], 1)
    return rows


def check(row: Row, d: ThinkingDelimiters) -> None:
    """What is promised of a row with a limit."""
    last, close = row.stood[-1], len(d.forced_end_ids)
    if row.cap is not None:
        for stood in row.stood:
            assert stood.content <= max(row.cap, row.given.content), "over budget"
        runs = [list(run) for _, run in groupby(row.stood, lambda stood: stood.thinking)]
        for run in runs:
            most = max(row.cap - run[0].used, 0) + close + len(d.lead_ids)  # a lead is not counted
            assert not run[0].thinking or len(run) <= most, "not closed in time"
    for step, stood in enumerate(row.stood):
        if row.thinking_ends is not None and step >= row.thinking_ends:
            assert not stood.thinking, "the reserve was used for thinking"
    assert len(last.stray) == len(row.given.stray), "a second close"
    assert not (last.finished and last.inside), "ended inside the thought"


def check_minimum(row: Row, d: ThinkingDelimiters) -> None:
    """No close below the minimum, unless the answer's reserve has to be kept, or the prompt leaves no token to write."""
    if row.cap is not None and row.given.used >= row.cap:
        return
    room = None if row.thinking_ends is None else row.thinking_ends - len(d.forced_end_ids)
    for step in range(1, len(row.stood)):
        before, after = row.stood[step - 1 : step + 1]
        late = room is not None and step > room
        if len(after.closes) > len(before.closes) and not late:
            assert after.used >= row.minimum, "closed below the minimum"


@settings(PROFILE, max_examples=100)
@given(
    batch=openings(ROWS),
    data=st.data(),
    seed=st.integers(0, 10_000),
    greedy=st.booleans(),
    tables=st.sampled_from(("none", "lines", "spans")),
    steer=st.booleans(),
    extended=st.booleans(),
)
def test_the_promises_hold_on_any_walk(
    batch: Any, data: st.DataObject, seed: int, greedy: bool, tables: str, steer: bool, extended: bool,
    forecast: Any, boundaries: Any,
) -> None:  # fmt: skip
    d = batch.delimiters
    asked = [data.draw(limits(d, forecast=steer)) for _ in range(ROWS)]
    if tables == "spans":
        missing = (torch.arange(VOCAB) == BYTE).to(torch.int64)
        spans = Spans(torch.arange(VOCAB) == FENCE, (FENCE,), missing)
        boundaries = replace(boundaries, spans=spans)
    columns = {name: [limit[name] for limit in asked] for name in asked[0]}
    controller = BudgetController(
        d,
        forecast=forecast if steer else None,
        boundaries=None if tables == "none" else boundaries,
        extension=Extension(PHRASE, 2) if extended else None,
        prompt_length=batch.width,
        greedy=greedy,
        **columns,
    )
    for row in write(controller, batch.ids, asked, seed, greedy):
        asks = [name for name, value in row.asked.items() if value is not None and name != "temperature"]
        if not asks and not extended:
            assert not row.touched, "a row without a limit"
            continue
        check_minimum(row, d)
        if asks != ["min_thinking_tokens"] or extended:
            check(row, d)
        over = row.cap is not None and row.stood[-1].used >= row.cap
        event(f"closed {len(row.stood[-1].closes)}, budget spent {over}")
