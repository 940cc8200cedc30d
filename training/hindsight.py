"""Supervised examples that teach what a budget prompt means: sampled thoughts, told afterwards what they cost.

A model that has never seen a budget in its prompt has nothing to be reinforced; a thought that took n tokens is a right
example of "think for n tokens". Lengths are those of the text as the tokenizer writes it, which is what is learned; a
model now and then samples a text in more tokens. Only thoughts with right answers are used. No paper's recipe: L1, e1 and HBPO begin with
reinforcement; it is the warm-up that ``sft_rl_split`` sets questions aside for.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from budgetctl.errors import TrainingError
from budgetctl.training.budget_prompts import (
    L1_EXACT,
    L1_MAX,
    THOUGHT_OPENING,
    effort_sentence,
    with_sentence,
)
from budgetctl.training.thinkdial import Judge, Thought, completion_text, task_columns

EFFORTS = (0.25, 0.5, 0.75, 1.0)


def l1_rows(
    thoughts: Sequence[Thought], tokenizer: Any, *, maximum: bool, seed: int = 0
) -> list[dict[str, Any]]:
    """L1's prompts. Exact: the completion's own length in tokens. Maximum: that times a factor drawn from 1 to 2."""
    rows = []
    for number, thought in enumerate(thoughts):
        ids = _ids(thought)
        target = _length(tokenizer, ids)
        sentence = L1_EXACT
        if maximum:
            draw = random.Random(f"{seed}:{thought.row['question_id']}:{number}").random()
            target, sentence = math.ceil(target * (1 + draw)), L1_MAX
        prompt = with_sentence(thought.row["prompt"], sentence.format(tokens=target))
        rows.append(_row(thought, tokenizer, prompt, ids) | {"target_tokens": target})
    return rows


def effort_rows(
    thoughts: Sequence[Thought], tokenizer: Any, *, efforts: Sequence[float] = EFFORTS
) -> list[dict[str, Any]]:
    """e1's prompts: the least effort r with length <= r * mean length of the question's thoughts, 1 beyond that.

    ``thoughts`` should hold several of each question.
    """
    lengths: dict[str, list[int]] = {}
    for thought in thoughts:
        lengths.setdefault(thought.row["question_id"], []).append(len(thought.thought_ids))
    rows = []
    for thought in thoughts:
        own = lengths[thought.row["question_id"]]
        bound = len(thought.thought_ids) * len(own) / max(sum(own), 1)
        effort = min((r for r in efforts if r >= bound), default=1.0)
        prompt = with_sentence(thought.row["prompt"], effort_sentence(effort))
        rows.append(_row(thought, tokenizer, prompt, _ids(thought)) | {"effort": effort})
    return rows


def opening_rows(
    thoughts: Sequence[Thought], tokenizer: Any, *, budgets: Sequence[int]
) -> list[dict[str, Any]]:
    """HBPO's thoughts: opened with the least budget, in tokens, that holds thought and answer; longer ones are left out.

    HBPO writes the sentence into its rollouts, so it is part of the prompt here, which is text up to and with it, and
    bears no loss.
    """
    rows = []
    for thought in thoughts:
        length = _length(tokenizer, _ids(thought)[len(thought.opening_ids) :])
        fitting = [budget for budget in sorted(budgets) if budget >= length]
        if not fitting:
            continue
        asked = tokenizer.apply_chat_template(
            thought.row["prompt"], add_generation_prompt=True, tokenize=False
        )
        opening = tokenizer.decode(list(thought.opening_ids), skip_special_tokens=False)
        prompt = asked + opening + THOUGHT_OPENING.format(budget=fitting[0])
        ids = _ids(thought)[len(thought.opening_ids) :]
        rows.append(_row(thought, tokenizer, prompt, ids) | {"budget": fitting[0]})
    return rows


def builder(
    kind: str, budgets: Sequence[int], seed: int
) -> Callable[[Sequence[Thought], Any, Judge], list[dict[str, Any]]]:
    """What makes the rows of a kind (``l1-exact``, ``l1-max``, ``effort``, ``hbpo``) from thoughts of any correctness.

    Raises:
        TrainingError: an unknown kind, or ``hbpo`` without budgets.
    """
    makers: dict[str, Callable[..., list[dict[str, Any]]]] = {
        "l1-exact": partial(l1_rows, maximum=False),
        "l1-max": partial(l1_rows, maximum=True, seed=seed),
        "effort": effort_rows,
        "hbpo": partial(opening_rows, budgets=budgets),
    }
    if kind not in makers:
        raise TrainingError(
            f"kind {kind!r}: expected {', '.join(makers)}, or modes with budgetctl.training.mode_data; correct it"
        )
    if kind == "hbpo" and not budgets:
        raise TrainingError("kind 'hbpo' without budgets: expected the budgets in tokens; give --budgets")

    def make(thoughts: Sequence[Thought], tokenizer: Any, is_right: Judge) -> list[dict[str, Any]]:
        right = [t for t in thoughts if is_right(tokenizer.decode(list(t.answer_ids)), t.row)]
        return makers[kind](right, tokenizer)

    return make


def _ids(thought: Thought) -> list[int]:
    return [*thought.opening_ids, *thought.thought_ids, *thought.close_ids, *thought.answer_ids]


def _length(tokenizer: Any, ids: Sequence[int]) -> int:
    return len(tokenizer.encode(completion_text(tokenizer, ids), add_special_tokens=False))


def _row(thought: Thought, tokenizer: Any, prompt: Any, ids: Sequence[int]) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "completion": completion_text(tokenizer, ids),
        "thinking_tokens": len(thought.thought_ids),
        **task_columns(thought.row),
    }
