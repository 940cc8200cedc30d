"""ThinkDial's mode data (He et al., arXiv 2508.18773): one question in the modes high, medium and low, by truncation.

High is the full thought. For medium and low the thought is cut to a half and a quarter of its tokens, a connective
sentence leads to the close, the model answers anew from what is left, and only right answers are kept. The paper found
some 2,000 examples a mode to do, beside plain data, and twice as many to hurt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from budgetctl.training.budget_prompts import MODES, Mode, with_system

#: Answers rows of token ids (prompt, thought, close), each with the ids up to its end of sequence, which is left out.
Answerer = Callable[[Sequence[Sequence[int]]], list[list[int]]]
#: Whether an answer's text is right for a task row.
Judge = Callable[[str, Mapping[str, Any]], bool]


@dataclass(frozen=True)
class Thought:
    """A sampled thought and its answer, as token ids.

    Args:
        row: the question's row of ``training/tasks.py``.
        context_ids: everything before the first thinking token.
        opening_ids: its last tokens, those that the model wrote itself: an open marker that the template leaves to it.
        thought_ids: the thought, without markers.
        close_ids: its close.
        answer_ids: the answer, without the end of sequence.
    """

    row: Mapping[str, Any]
    context_ids: Sequence[int]
    opening_ids: Sequence[int]
    thought_ids: Sequence[int]
    close_ids: Sequence[int]
    answer_ids: Sequence[int]


def truncate_thought(thought_ids: Sequence[int], mode: Mode, line_ends: Container[int] = ()) -> list[int]:
    """The beginning of a thought that a mode keeps.

    Args:
        thought_ids: tokens of the full thought.
        mode: keeps ``floor(share * length)`` tokens, and no more.
        line_ends: tokens that end a line. Where one stands in the second half of what is kept, the cut is put after the
            last of them, so that no line is cut in two; without any the cut is at the token.
    """
    kept = list(thought_ids[: math.floor(mode.share * len(thought_ids))])
    if len(kept) == len(thought_ids):
        return kept
    for stop in range(len(kept), (len(kept) + 1) // 2, -1):
        if kept[stop - 1] in line_ends:
            return kept[:stop]
    return kept


def mode_rows(
    thoughts: Sequence[Thought],
    tokenizer: Any,
    answer: Answerer,
    is_right: Judge,
    *,
    modes: Mapping[str, Mode] = MODES,
    line_ends: Container[int] = (),
) -> list[dict[str, Any]]:
    """Supervised examples in all modes, of those thoughts that end in a right answer.

    Returns:
        rows with ``prompt`` (messages, the mode in the system prompt), ``completion`` (text of thought, close and answer
        with the end of sequence), ``mode``, ``thinking_tokens`` and the task's ``answer``, ``task``, ``entry`` and
        ``question_id``.
    """
    right = [t for t in thoughts if is_right(tokenizer.decode(list(t.answer_ids)), t.row)]
    drafts: list[tuple[Thought, str, list[int], list[int] | None]] = []
    asked: list[list[int]] = []
    for thought in right:
        for name, mode in modes.items():
            kept = truncate_thought(thought.thought_ids, mode, line_ends)
            if len(kept) == len(thought.thought_ids):
                drafts.append((thought, name, kept, list(thought.answer_ids)))
                continue
            kept += tokenizer.encode(mode.connective, add_special_tokens=False)
            drafts.append((thought, name, kept, None))
            asked.append([*thought.context_ids, *kept, *thought.close_ids])
    answers = iter(answer(asked) if asked else [])
    rows = []
    for thought, name, kept, known in drafts:
        answer_ids = next(answers) if known is None else known
        if known is None and not is_right(tokenizer.decode(answer_ids), thought.row):
            continue
        ids = [*thought.opening_ids, *kept, *thought.close_ids, *answer_ids]
        rows.append(
            {
                "prompt": with_system(thought.row["prompt"], modes[name].system),
                "completion": completion_text(tokenizer, ids),
                "mode": name,
                "thinking_tokens": len(kept),
                **task_columns(thought.row),
            }
        )
    return rows


def completion_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """Text of a completion, markers and end of sequence included."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False)) + (tokenizer.eos_token or "")


def task_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """What later training and evaluation need of a task row."""
    return {name: row[name] for name in ("answer", "task", "entry", "question_id")}
