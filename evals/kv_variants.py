"""Policies and protection written as one word, so that a table can name what it compares."""

from __future__ import annotations

import ast
from dataclasses import fields
from typing import Any

from budgetctl.errors import BudgetctlError
from budgetctl.kv import POLICIES
from budgetctl.kv.policies import Policy

#: Options of the cache that a variant may set beside those of its policy.
OF_CACHE = ("sinks", "recent", "prompt_share")


def parse_variant(text: str) -> tuple[Policy, dict[str, Any]]:
    """``decayed-max:decay=0.95,recent=16`` as a policy and options of the cache.

    Raises:
        BudgetctlError: for a policy or an option that does not exist.
    """
    name, _, settings = text.partition(":")
    if name not in POLICIES:
        raise BudgetctlError(f"policy {name!r}: expected one of {', '.join(POLICIES)}")
    known = [field.name for field in fields(POLICIES[name])]
    given: dict[str, Any] = {}
    for setting in filter(None, settings.split(",")):
        key, _, value = setting.partition("=")
        if key not in known and key not in OF_CACHE:
            raise BudgetctlError(
                f"option {key!r} of {name}: expected one of {', '.join((*known, *OF_CACHE))}"
            )
        try:
            given[key] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            raise BudgetctlError(f"{setting!r} of {name}: expected {key}=NUMBER") from None
    of_cache = {key: value for key, value in given.items() if key in OF_CACHE}
    return POLICIES[name](**{key: value for key, value in given.items() if key not in of_cache}), of_cache
