"""The plugin that takes ``reasoning_effort`` for the effort, without vLLM."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from budgetctl.errors import BudgetctlError
from budgetctl.integrations.vllm.reasoning_effort import VARIABLE, register, teach, with_effort


@pytest.mark.parametrize(
    ("extra_args", "effort", "expected"),
    [
        (None, None, None),
        (None, "low", {"effort": "low"}),
        ({"other": 1}, "none", {"other": 1, "effort": "none"}),
        ({"other": 1}, None, {"other": 1}),
        ({"thinking_budget": 0}, "high", {"thinking_budget": 0}),
        ({"effort": "auto"}, "high", {"effort": "auto"}),
    ],
)
def test_own_knobs_come_first(extra_args: Any, effort: str | None, expected: Any) -> None:
    assert with_effort(extra_args, effort) == expected


def test_the_parameters_of_a_request_have_its_effort() -> None:
    class Request:
        reasoning_effort = "medium"

        def to_sampling_params(self, length: int) -> Any:
            return SimpleNamespace(max_tokens=length, extra_args=None)

    for _ in range(2):  # a plugin may be loaded again
        teach(Request, lambda request: request.reasoning_effort)
    params = Request().to_sampling_params(7)
    assert (params.max_tokens, params.extra_args) == (7, {"effort": "medium"})
    assert not hasattr(Request.to_sampling_params.__wrapped__, "__wrapped__")  # type: ignore[attr-defined]


@pytest.mark.parametrize("given", [None, "", "0"])
def test_off_by_default(given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # not even imported
    monkeypatch.delenv(VARIABLE, raising=False)
    if given is not None:
        monkeypatch.setenv(VARIABLE, given)
    register()


def test_another_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "yes")
    with pytest.raises(BudgetctlError, match="expected 1 for on or 0 for off"):
        register()
