"""Wrappers around a model's own ``generate``, one inside the other, and off again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

#: Attribute of a wrapper: the instance's own ``generate`` that it replaced, None for that of the class.
REPLACED = "_budgetctl_replaced"

Around = Callable[[Any, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


def wrap_generate(model: Any, around: Around) -> None:
    """Replace ``model.generate`` by ``around(model, generate, arguments, options)``; :func:`unwrap` undoes it.

    A copy of the model calls its own ``generate`` inside, not that of the model it was copied from.
    """
    own = vars(model).get("generate")  # a model may bring a loop of its own

    @functools.wraps(type(model).generate)
    def generate(this: Any, *arguments: Any, **options: Any) -> Any:
        if own is None:
            inner: Callable[..., Any] = MethodType(type(this).generate, this)
        elif hasattr(getattr(own, "__func__", None), REPLACED):
            inner = MethodType(own.__func__, this)
        else:
            inner = own
        return around(this, inner, arguments, options)

    setattr(generate, REPLACED, own)
    model.generate = MethodType(generate, model)


def unwrap(model: Any) -> None:
    """Give ``model`` back the ``generate`` that it had before it was wrapped, if it was, however often."""
    while hasattr(current := getattr(vars(model).get("generate"), "__func__", None), REPLACED):
        own = getattr(current, REPLACED)
        if own is None:
            del model.generate
        else:
            model.generate = own
