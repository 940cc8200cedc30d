"""A plan from what a planner has written: the first JSON value that is one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from budgetctl.errors import PlanError
from budgetctl.plan.plan import Plan

#: Longest reply that is looked at, in characters.
MOST_TEXT = 100_000


def parse_plan(text: str, *, planner_tokens: int = 0) -> Plan:
    """The plan in a planner's reply; text and code fences around it do not matter, nor does a thought before it.

    Raises:
        PlanError: when there is none, saying what is wrong with what comes closest to one.
    """
    shown = text[-MOST_TEXT:].rpartition("</think>")[2]
    first: PlanError | None = None
    for value in _json_values(shown):
        steps = value.get("steps") if isinstance(value, dict) else value
        if not isinstance(steps, list):
            continue
        try:
            return Plan.of({"steps": steps, "source": "planned", "planner_tokens": planner_tokens})
        except PlanError as error:
            first = first or error
    if first is not None:
        raise first
    raise PlanError(
        "the planner's reply has no JSON object with steps: expected one such as "
        '{"steps": [{"text": "...", "credit": 100}]}; ask again, or give the plan as data'
    )


def _json_values(text: str) -> Iterator[Any]:
    """Objects and lists that stand in a text, outermost first."""
    decoder = json.JSONDecoder(parse_constant=lambda name: math.nan)
    at = 0
    while True:
        starts = [place for place in (text.find("{", at), text.find("[", at)) if place >= 0]
        if not starts:
            return
        at = min(starts)
        try:
            value, at = decoder.raw_decode(text, at)
            yield value
        except (ValueError, RecursionError):
            at += 1
