"""Lists on a command line."""

from __future__ import annotations

from budgetctl.errors import EvalError


def text_list(option: str, text: str) -> list[str]:
    """Texts separated by commas, at least one and none twice.

    Raises:
        EvalError: for anything else.
    """
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise EvalError(
            f"{option} {text!r} has an empty entry: expected names separated by commas; correct it"
        )
    for part in found:
        if found.count(part) > 1:
            raise EvalError(f"{option} {text!r} has {part!r} twice: expected each once; leave one out")
    return found


def number_list(option: str, text: str, most: int = 2**40) -> list[int]:
    """Whole numbers from 0 to ``most`` separated by commas, none twice; [] for an empty text.

    Raises:
        EvalError: for anything else.
    """
    if not text.strip():
        return []
    found = []
    for part in text_list(option, text):
        if not (part.isascii() and part.isdigit()) or int(part) > most:
            raise EvalError(
                f"{option} {text!r} has {part!r}: expected whole numbers from 0 to {most}; correct it"
            )
        if int(part) in found:
            raise EvalError(f"{option} {text!r} has {int(part)} twice: expected each once; leave one out")
        found.append(int(part))
    return found
