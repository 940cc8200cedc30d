"""What a request may ask for, and how it is refused."""

from __future__ import annotations

from typing import Any

import pytest

from budgetctl.budget import NO_CAP
from budgetctl.errors import BudgetError
from budgetctl.guidance import GREEDY_TEMPERATURE
from budgetctl.integrations.vllm.knobs import check_request, limits_of, read_knobs
from tests.budgetctl.integrations.vllm.fakes import Update, processor_for, sampling


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"thinking_budget": -1}, "negative"),
        ({"thinking_budget": "64"}, "whole number"),
        ({"thinking_budget": 2.5}, "whole number"),
        ({"thinking_budget": [8, 9]}, "single value"),
        ({"effort": "lots"}, "unknown effort"),
        ({"effort": 2.0}, "out of range"),
        ({"effort": "none", "thinking_budget": 4}, "contradicts"),
        ({"thinking_budget": 4, "min_thinking_tokens": 5}, "more than the thinking budget"),
        ({"thinking_target": 4, "thinking_budget": 5}, "contradicts"),
        ({"thinking_budget": 5, "answer_reserve": 100}, "answer_reserve"),
        ({"thinking_token_budget": 4}, "expected thinking_budget"),
        ({"reasoning_effort": "low"}, "expected effort"),
        ({"max_extensions": 2}, "no knob of a request"),
        ({"effort": "low"}, "BUDGETCTL_PREDICTOR"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(BudgetError, match=message) as caught:
        check_request(sampling(50, **asked), has_predictor=False)
    assert "\n" not in str(caught.value)


def test_a_temperature_that_guidance_cannot_work_with_is_refused() -> None:
    check_request(sampling(50, temperature=1e30), has_predictor=False)  # no limit, no business of ours
    with pytest.raises(BudgetError, match="temperature"):
        check_request(sampling(50, temperature=1e30, thinking_budget=3), has_predictor=False)


def test_what_belongs_to_others_is_left_alone() -> None:
    assert read_knobs({"their_knob": [1, 2], "thinking_budget": 3, "effort": "auto"}) == {
        "thinking_budget": 3
    }
    assert read_knobs(None) == {}


def test_limits() -> None:
    found = limits_of(sampling(100, 0.0, thinking_budget=9, effort="low", answer_reserve=20), 2)
    assert (found.cap, found.fraction, found.limited, found.room) == (9, 0.25, True, 78)
    assert found.needs_prediction
    assert found.temperature == GREEDY_TEMPERATURE
    free = limits_of(sampling(100), 2)
    assert (free.cap, free.asked, free.minimum) == (NO_CAP, False, 0)
    assert limits_of(sampling(None, min_thinking_tokens=3), 2).asked


def test_a_reserve_that_the_close_leaves_no_room_for_takes_what_there_is() -> None:
    asked = sampling(10, thinking_budget=5, answer_reserve=9)
    check_request(asked, has_predictor=False)  # right for a close of one token
    assert limits_of(asked, 4).room == 0
    assert limits_of(asked, 4, most_new_tokens=3).room == 0


def test_an_effort_that_a_worker_cannot_keep_is_logged_once(
    markers: Any, boundaries: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The predictor is named in the environment of the frontend, and not in that of this process."""
    processor = processor_for(markers["opened by the template"], boundaries, None)
    asked = sampling(50, effort="low")
    processor.update_state(Update(2, added=[(row, asked, [5], []) for row in range(2)]))
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "every process of the server" in record.getMessage()
