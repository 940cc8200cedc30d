"""The answers behind the numbers, as the page embeds them: whole questions, up to a size, safe inside a script element."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from budgetctl.evals.harness.answer import Answer
from budgetctl.evals.report.run import Run
from budgetctl.evals.report.series import setting_name

#: Most bytes of questions in a page.
BYTES = 3_000_000
#: Longest thought, answer or question that is shown whole, characters; of a longer one both ends are.
TEXT = 6_000
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


@dataclass(frozen=True)
class Questions:
    """What is embedded.

    Args:
        json: of the questions, to stand in a script element.
        shown: how many questions there are in it.
        total: how many the runs asked.
        shortened: how many of their texts were too long to be shown whole.
    """

    json: str
    shown: int
    total: int
    shortened: int


def embed_questions(runs: Sequence[Run], limit: int = BYTES) -> Questions:
    """As many questions as fit into ``limit`` bytes, the tasks in turn, each with every answer that it was given.

    The first is embedded whatever its size.
    """
    asked: dict[tuple[str, str], list[tuple[int, Answer]]] = {}
    for number, run in enumerate(runs):
        for record in run.records:
            asked.setdefault((record.task, record.item), []).append((number, record))
    parts: list[str] = []
    size = shortened = 0
    for key in _in_turn(list(asked)):
        question, cut = _question(key, asked[key])
        text = safe_json(question)
        size += len(text.encode()) + 1
        if parts and size > limit:
            break
        parts.append(text)
        shortened += cut
    return Questions(f"[{','.join(parts)}]", len(parts), len(asked), shortened)


def safe_json(value: Any) -> str:
    """JSON that no HTML parser takes for markup, inside a script element or out of it; lone surrogates are escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character, escape in _UNSAFE.items():
        text = text.replace(character, escape)
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def pieces(thought: str, steered: Sequence[tuple[int, int]], longest: int = TEXT) -> list[str]:
    """A thought in pieces that are by turns its own and steered, the first and the last its own.

    Joined they are the thought; of one longer than ``longest`` characters the middle is replaced by its length.
    """
    if len(thought) <= longest:
        return _split(thought, steered, 0, len(thought))
    half = longest // 2
    head = _split(thought, steered, 0, half)
    tail = _split(thought, steered, len(thought) - half, len(thought))
    return [*head[:-1], head[-1] + _gap(len(thought) - 2 * half) + tail[0], *tail[1:]]


def _split(thought: str, steered: Sequence[tuple[int, int]], first: int, last: int) -> list[str]:
    found, at = [], first
    for start, stop in steered:
        start, stop = (min(max(end, at), last) for end in (start, stop))
        if start < stop:
            found += [thought[at:start], thought[start:stop]]
            at = stop
    return [*found, thought[at:last]]


def _gap(characters: int) -> str:
    return f"\n[… {characters} characters left out …]\n"


def _in_turn(keys: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """One question of each task, then the second of each, and so on."""
    tasks: dict[str, list[tuple[str, str]]] = {}
    for key in keys:
        tasks.setdefault(key[0], []).append(key)
    for turn in zip_longest(*tasks.values()):
        yield from (key for key in turn if key is not None)


def _question(key: tuple[str, str], answers: Sequence[tuple[int, Answer]]) -> tuple[dict[str, Any], int]:
    """A question as the page's script reads it, and how many texts were shortened."""
    first = answers[0][1]
    told = []
    for run, one in answers:
        told.append(
            {
                "run": run,
                "method": one.method,
                "setting": setting_name(one.budget, one.effort),
                "seed": one.seed,
                "right": one.correct,
                "score": one.score,
                "thought": pieces(one.thought, one.steered),
                "answer": _short(one.answer),
                "close": one.close,
                "leaked": one.leaked,
                "tokens": [one.thinking_tokens, one.answer_tokens, one.overhead_tokens],
                "limit": one.thinking_budget,
                "predicted": None if one.predicted_tokens is None else round(one.predicted_tokens, 1),
                "steered": len(one.steered),
            }
        )
    question = {
        "task": key[0],
        "item": key[1],
        "level": first.level,
        "prompt": _short(first.prompt),
        "expected": _short(first.expected),
        "answers": told,
    }
    texts = [first.prompt, first.expected]
    texts += [text for _, one in answers for text in (one.thought, one.answer)]
    return question, sum(len(text) > TEXT for text in texts)


def _short(text: str) -> str:
    return "".join(pieces(text, ()))
