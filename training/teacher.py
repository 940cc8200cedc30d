"""Written thoughts for the embedded family, of many lengths a question: a warm-up needs no model to sample from."""

from __future__ import annotations

import random

from transformers import PreTrainedTokenizerBase

from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.reasoner.tasks import SPLIT_SEED, take_questions
from budgetctl.training.reasoner.styles import Piece, draw_style, write_thought
from budgetctl.training.tasks import embedded_tasks
from budgetctl.training.thinkdial import Thought


def teacher_thoughts(
    questions: int,
    samples: int,
    tokenizer: PreTrainedTokenizerBase,
    delimiters: ThinkingDelimiters,
    seed: int = 0,
) -> list[Thought]:
    """``samples`` thoughts of drawn styles for each of the first ``questions`` training questions of a seed.

    The styles are those that the embedded reasoner was trained on (``training/reasoner/styles.py``). Thoughts with an
    injected error are drawn again: a text has no mask that keeps the error from being learned.
    """
    rows = embedded_tasks(questions, seed=seed)
    close = list(delimiters.forced_end_ids)
    thoughts = []
    for row, question in zip(rows, take_questions("train", questions, seed), strict=True):
        rng = random.Random(f"{SPLIT_SEED['train']}:{seed}:{row['question_id']}")
        answer = tokenizer.encode(f"\n\nAnswer: {question.answer}", add_special_tokens=False)
        for _ in range(samples):
            pieces = [Piece("", learn=False)]
            while not all(piece.learn for piece in pieces):
                pieces = write_thought(question, draw_style(rng), rng)
            text = "".join(piece.text for piece in pieces)
            ids = tokenizer.encode(text, add_special_tokens=False)
            thoughts.append(Thought(row, [], [], ids, close, answer))
    return thoughts
