"""Mode data by truncation, and examples by hindsight, over thoughts that are written out."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from budgetctl.errors import TrainingError
from budgetctl.training import hbpo
from budgetctl.training.budget_prompts import (
    MODES,
    THOUGHT_OPENING,
    Mode,
    effort_sentence,
    with_sentence,
    with_system,
)
from budgetctl.training.completions import CompletionReader
from budgetctl.training.hindsight import builder, effort_rows, l1_rows, opening_rows
from budgetctl.training.thinkdial import Thought, mode_rows, truncate_thought

USER = [{"role": "user", "content": "2+1?"}]


def thought(
    tokenizer: PreTrainedTokenizerFast,
    text: str,
    answer: str = "Answer: 3",
    question: str = "q",
    gold: str = "3",
) -> Thought:
    encode = lambda part: tokenizer.encode(part, add_special_tokens=False)  # noqa: E731
    context = encode("<|im_start|>user\n2+1?<|im_end|>\n<|im_start|>assistant\n<think>\n")
    row = {"prompt": USER, "answer": gold, "task": "embedded/dial", "entry": "", "question_id": question}
    return Thought(row, context, [], encode(text), encode("</think>"), encode(f"\n\n{answer}"))


def is_right(answer: str, row: Mapping[str, Any]) -> bool:
    return answer.strip().endswith(row["answer"])


@given(st.integers(0, 200), st.fractions(0, 1), st.integers(0, 2**32))
def test_truncation_keeps_at_most_the_share_and_at_least_half_of_it(
    length: int, share: Fraction, seed: int
) -> None:
    rng = random.Random(seed)
    ids = [rng.randrange(5) for _ in range(length)]
    allowed = int(share * length)
    plain = truncate_thought(ids, Mode(share, ""))
    assert plain == ids[:allowed]
    kept = truncate_thought(ids, Mode(share, ""), line_ends={0})
    assert kept == ids[: len(kept)]
    assert allowed / 2 <= len(kept) <= allowed
    if len(kept) < allowed:
        assert kept[-1] == 0
        assert 0 not in ids[len(kept) : allowed]
    elif allowed < length and kept and kept[-1] != 0:
        assert 0 not in ids[(allowed + 1) // 2 : allowed]


def test_modes_keep_what_they_should_and_answer_anew(tokenizer: PreTrainedTokenizerFast) -> None:
    full = thought(tokenizer, "0+1=1\n1+1=2\n2+1=3\n3+0=3\n", question="a")
    wrong = thought(tokenizer, "0+1=1\n", answer="Answer: 7", question="b")
    asked: list[list[int]] = []

    def answer(rows: Sequence[Sequence[int]]) -> list[list[int]]:
        asked.extend(list(row) for row in rows)
        return [tokenizer.encode(text, add_special_tokens=False) for text in ("\n\nSo 3", "\n\nSo 9")]

    line_ends = set(tokenizer.encode("\n", add_special_tokens=False))
    rows = mode_rows([full, wrong], tokenizer, answer, is_right, line_ends=line_ends)
    # The wrong thought is left out, and so is the low mode, whose answer is wrong.
    assert [row["mode"] for row in rows] == ["high", "medium"]
    assert rows[0]["completion"] == "0+1=1\n1+1=2\n2+1=3\n3+0=3\n</think>\n\nAnswer: 3<|im_end|>"
    middle = MODES["medium"].connective
    assert rows[1]["completion"] == f"0+1=1\n1+1=2\n{middle}</think>\n\nSo 3<|im_end|>"
    assert [row["prompt"][0] for row in rows] == [
        {"role": "system", "content": MODES[mode].system} for mode in ("high", "medium")
    ]
    assert rows[0]["prompt"][1:] == USER
    assert rows[0]["thinking_tokens"] == len(full.thought_ids)
    assert {row["question_id"] for row in rows} == {"a"}
    # What the model reads is the prompt, the cut thought with its connective, and the close.
    prompt = tokenizer.decode(full.context_ids)
    assert [tokenizer.decode(ids) for ids in asked] == [
        f"{prompt}0+1=1\n1+1=2\n{middle}</think>",
        f"{prompt}0+1=1\n{MODES['low'].connective}</think>",
    ]


def test_an_open_marker_of_the_model_stays_in_the_completion(tokenizer: PreTrainedTokenizerFast) -> None:
    own = thought(tokenizer, "1\n2\n")
    own = Thought(
        own.row, own.context_ids, own.context_ids[-2:], own.thought_ids, own.close_ids, own.answer_ids
    )
    high, *_ = mode_rows([own], tokenizer, lambda rows: [[] for _ in rows], is_right)
    assert high["completion"].startswith("<think>\n1\n2\n</think>")
    (row,) = opening_rows([own], tokenizer, budgets=[64])
    assert row["prompt"].endswith("<think>\n<think>\n" + THOUGHT_OPENING.format(budget=64))
    assert row["completion"].startswith("1\n2\n</think>")


def test_l1_prompts_name_the_length_that_was_used(tokenizer: PreTrainedTokenizerFast) -> None:
    reader = CompletionReader(tokenizer)
    thoughts = [thought(tokenizer, "7" * n, question=str(n)) for n in (4, 30, 31)]
    for row in l1_rows(thoughts, tokenizer, maximum=False):
        used = reader.read(tokenizer.encode(row["completion"], add_special_tokens=False)).total_tokens
        assert row["target_tokens"] == used
        assert row["prompt"][0]["content"] == f"2+1? Think for {used} tokens."
    targets = [row["target_tokens"] for row in l1_rows(thoughts, tokenizer, maximum=True, seed=1)]
    for own, target in zip(thoughts, targets, strict=True):
        used = len(own.thought_ids) + len(own.close_ids) + len(own.answer_ids) + 1
        assert used <= target <= 2 * used
    assert targets == [row["target_tokens"] for row in l1_rows(thoughts, tokenizer, maximum=True, seed=1)]
    assert targets != [row["target_tokens"] for row in l1_rows(thoughts, tokenizer, maximum=True, seed=2)]


def test_effort_is_the_share_of_the_questions_mean(tokenizer: PreTrainedTokenizerFast) -> None:
    thoughts = [thought(tokenizer, "7" * n, question="a") for n in (10, 20, 30, 60)]
    thoughts.append(thought(tokenizer, "7" * 500, question="b"))
    rows = effort_rows(thoughts, tokenizer)
    assert [row["effort"] for row in rows] == [0.5, 0.75, 1.0, 1.0, 1.0]
    assert rows[0]["prompt"][0]["content"] == f"2+1? {effort_sentence(0.5)}" == "2+1? Reasoning effort: 50%."


def test_thoughts_open_with_the_least_budget_that_holds_them(tokenizer: PreTrainedTokenizerFast) -> None:
    thoughts = [thought(tokenizer, "7" * n) for n in (4, 30, 300)]
    ends = len(thoughts[0].answer_ids) + 2  # close and end of sequence
    rows = opening_rows(thoughts, tokenizer, budgets=[64, 4 + ends, 30 + ends - 1])
    assert [row["budget"] for row in rows] == [4 + ends, 64]
    assert rows[0]["prompt"].endswith(f"assistant\n<think>\n{THOUGHT_OPENING.format(budget=4 + ends)}")
    assert rows[0]["completion"] == "7777</think>\n\nAnswer: 3<|im_end|>"
    assert THOUGHT_OPENING == hbpo.OPENING


def test_builders_drop_wrong_answers_and_refuse_unknown_kinds(tokenizer: PreTrainedTokenizerFast) -> None:
    thoughts = [thought(tokenizer, "77"), thought(tokenizer, "777", answer="Answer: 9")]
    for kind in ("l1-exact", "l1-max", "effort", "hbpo"):
        assert len(builder(kind, [64], 0)(thoughts, tokenizer, is_right)) == 1
    with pytest.raises(TrainingError, match="expected l1-exact"):
        builder("l2", [], 0)
    with pytest.raises(TrainingError, match="give --budgets"):
        builder("hbpo", [], 0)


def test_prompts_are_changed_where_they_should_be() -> None:
    chat = [{"role": "system", "content": "Be brief."}, *USER]
    assert with_system(chat, "Mode: low.") == [{"role": "system", "content": "Be brief.\nMode: low."}, *USER]
    assert with_system(USER, "x")[1:] == USER
    assert with_sentence(chat, "y") == [chat[0], {"role": "user", "content": "2+1? y"}]
    assert chat[1]["content"] == "2+1?"
    assert MODES["high"].share == 1 > MODES["medium"].share > MODES["low"].share
