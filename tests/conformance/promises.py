"""What every engine owes in every case, checked from the token ids by a plain count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.conformance.cases import CLOSE, Case
from tests.conformance.interface import Row
from tests.conformance.model import EOS, OPEN, TOOL


def allowed(case: Case, row: int) -> int | None:
    """Thinking tokens that the prompt ``row`` may use, None without an absolute cap."""
    target = case.knob("thinking_target", row)
    if target is not None:
        return target + case.knob("target_tolerance", row)
    if case.knob("effort", row) == "none":
        return 0
    return case.knob("thinking_budget", row)


def before_tool(ids: list[int], case: Case, width: int) -> list[int]:
    """The row up to a tool call, which ends the thought."""
    if not case.delimiters.tool_call_ids:
        return ids
    at = next((i for i in range(width, len(ids)) if ids[i] == TOOL), len(ids))
    return ids[:at]


def closes_nothing(case: Case, new_ids: list[int]) -> bool:
    """Whether the model writes a close before any thought: that is its own, and the report tells it."""
    if case.delimiters.opened_by_template or case.delimiters.implicit:
        return False
    before = new_ids[: new_ids.index(OPEN)] if OPEN in new_ids else new_ids
    return CLOSE in before


def check(case: Case, found: Row, free: Row, stops_at: int, count: Callable[..., Any]) -> None:
    """Every promise that can be checked on one row; ``free`` is what the model writes alone."""
    prompt = case.prompts()[found.prompt]
    width, ids = len(prompt), prompt + found.new_ids
    cap, report = allowed(case, found.prompt), found.report
    given = count(prompt, width, case.delimiters).used
    counted = count(before_tool(ids, case, width), width, case.delimiters)
    assert report is not None
    if all(case.knob(name, found.prompt) is None for name in case.knobs):
        assert found.new_ids == free.new_ids, "a row without a limit differs from the model alone"
        return
    called = len(before_tool(ids, case, width)) < len(ids)
    if cap is not None:
        assert counted.used <= max(cap, given), "over budget"
        # One that runs to its length has closed its thought; a stopping criterion may come in between.
        assert not counted.open or called or stops_at < case.max_new_tokens, "not closed"
    assert counted.stray == 0, "a second close in the answer"
    reserve = case.knob("answer_reserve", found.prompt)
    if reserve is not None and len(found.new_ids) == case.max_new_tokens and found.new_ids[-1] != EOS:
        at_reserve = count(ids[: len(ids) - reserve], width, case.delimiters)
        assert not at_reserve.open, "the reserve was used for thinking"
    lowest = case.knob("min_thinking_tokens", found.prompt) or 0
    if case.knob("thinking_target", found.prompt) is not None:
        lowest = case.knob("thinking_target", found.prompt) - case.knob("target_tolerance", found.prompt)
    if counted.closes and stops_at >= case.max_new_tokens:
        assert counted.used >= lowest, "closed below the minimum"
    assert report.thinking_budget is None or counted.used <= max(report.thinking_budget, given)
    if not counted.open and not case.delimiters.tool_call_ids:
        assert report.thinking_tokens == counted.used, "the report's count"
    assert report.leaked == closes_nothing(case, found.new_ids)
    if "structured" in case.needs and found.new_ids[-1] == EOS:
        answer = found.new_ids[found.new_ids.index(CLOSE) + 1 : -1]
        assert answer in ([21, 22], [21, 22, 21]), "the answer is not of the grammar"
