"""Whether an answer is right: the embedded family, reasoning-gym by dataset, choices, literals, mathematics, plain text.

A row of tasks names its verifier by the beginning of its ``task`` column (``training/tasks.py``):
``embedded/<family>``, ``reasoning-gym/<dataset>``, ``choice`` for a letter, ``literal`` for a Python value; any other task
is compared by math-verify, and as text where the reference answer is no mathematics.
"""

from __future__ import annotations

import ast
import json
import logging
import re
import threading
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from budgetctl.errors import TrainingError
from budgetctl.reasoner.tasks import FAMILIES, extract_answer

EMBEDDED = "embedded/"
REASONING_GYM = "reasoning-gym/"
CHOICE, LITERAL = "choice", "literal"
_SECONDS = 5


def score_answer(text: str, answer: str, task: str = "", entry: str = "") -> float:
    """How right an answer is, 0 to 1; only reasoning-gym has values between.

    Args:
        text: the model's answer, without its thought.
        answer: reference answer.
        task: as in the module's docstring.
        entry: for reasoning-gym, the JSON of ``{"seed", "size", "index", "config"}`` that makes the question again.

    Raises:
        TrainingError: an unknown family, or an entry that is no such JSON.
    """
    if task.startswith(EMBEDDED):
        family = task.removeprefix(EMBEDDED)
        if family not in FAMILIES:
            raise TrainingError(
                f"task {task!r}: expected a family of {', '.join(FAMILIES)}; correct the column"
            )
        return float(extract_answer(family, text) == answer)
    if task.startswith(REASONING_GYM):
        return _score_reasoning_gym(text, task.removeprefix(REASONING_GYM), entry)
    if task == CHOICE:
        return float(chosen_letter(text) == answer.strip())
    if task == LITERAL:
        return float(same_literal(final_answer(text), answer))
    return float(same_mathematics(text, answer))


def is_correct(text: str, answer: str, task: str = "", entry: str = "") -> bool:
    """Whether an answer is fully right; arguments as of :func:`score_answer`."""
    return score_answer(text, answer, task, entry) >= 1


@lru_cache(maxsize=128)
def gym_dataset(name: str, seed: int, size: int, config: str) -> Any:
    """A dataset of reasoning-gym, made again from its settings (``config`` is JSON); its items follow from the seed."""
    require_package("reasoning_gym")
    import reasoning_gym

    return reasoning_gym.create_dataset(name, seed=seed, size=size, **json.loads(config))


def _score_reasoning_gym(text: str, name: str, entry: str) -> float:
    try:
        settings = json.loads(entry)
        seed, size, index = (int(settings[key]) for key in ("seed", "size", "index"))
        config = json.dumps(settings["config"], sort_keys=True)
    except (ValueError, KeyError, TypeError):
        raise TrainingError(
            f"entry {entry[:60]!r} of task {REASONING_GYM + name!r}: expected JSON with seed, size, index and config; "
            "make the dataset with training.tasks"
        ) from None
    dataset = gym_dataset(name, seed, size, config)
    return float(dataset.score_answer(final_answer(text), dataset[index]))


def require_package(name: str) -> None:
    """Check that an optional package is there.

    Raises:
        TrainingError: it is not.
    """
    if find_spec(name) is None:
        raise TrainingError(
            f"{name} is not installed: expected it for these answers; pip install 'budgetctl-llm[evals]'"
        )


def final_answer(text: str) -> str:
    """The answer inside a text: the last ``\\boxed{...}``, else what follows the last "answer:", else all of it."""
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed
    *_, tail = re.split(r"(?i)\banswer\s*(?:is|:)\s*:?", text)
    return tail.strip().strip("*").strip()


def _last_boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for at in range(start + len("\\boxed"), len(text)):
        depth += (text[at] == "{") - (text[at] == "}")
        if depth == 0:
            return text[start + len("\\boxed{") : at].strip()
    return None


def chosen_letter(text: str) -> str | None:
    """The letter, A to J, of a multiple choice: the first of the final answer, or the last of a text without one."""
    final = final_answer(text)
    letters = re.findall(r"(?<![A-Za-z])[A-J](?![A-Za-z'])", final)
    if not letters:
        return None
    return str(letters[-1] if final == text.strip().strip("*").strip() else letters[0])


def same_literal(text: str, answer: str) -> bool:
    """Whether a text is a Python literal equal to the reference, which is nowhere run; as text where the reference is
    no literal."""
    try:
        wanted = ast.literal_eval(answer)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return _plain(text) == _plain(answer)
    try:
        return bool(ast.literal_eval(text.strip().strip("`").strip()) == wanted)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return False


def same_mathematics(text: str, answer: str) -> bool:
    """Whether a text's answer equals the reference by math-verify; as text, without case and final stop, where the
    reference is no mathematics.

    math-verify stops a comparison after 5 seconds by a signal, which only the main thread can take; in another thread
    nothing is stopped.
    """
    from math_verify import parse, verify

    limit = _SECONDS if threading.current_thread() is threading.main_thread() else None
    if limit is None:
        for name in ("math_verify.parser", "math_verify.grader"):
            logging.getLogger(name).setLevel(logging.ERROR)
    found = final_answer(text)
    gold = parse(_as_mathematics(answer), parsing_timeout=limit)
    if not gold:
        return _plain(found) == _plain(answer)
    # First the answer alone, then what math-verify finds in the whole text.
    return any(
        verify(gold, parse(candidate, parsing_timeout=limit), timeout_seconds=limit)
        for candidate in dict.fromkeys((_as_mathematics(found), text))
    )


def _as_mathematics(text: str) -> str:
    """LaTeX without its delimiters is not seen by math-verify."""
    return f"${text}$" if "\\" in text and "$" not in text else text


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".").casefold()
