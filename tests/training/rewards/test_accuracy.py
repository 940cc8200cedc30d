"""The task reward counts right answers after a closed thought, by the verifier that the row names."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import pytest
from transformers import PreTrainedTokenizerFast

from budgetctl.errors import TrainingError
from budgetctl.training.completions import CompletionReader
from budgetctl.training.rewards.accuracy import AccuracyReward
from budgetctl.training.rewards.columns import consecutive_groups, require_columns

Write = Callable[..., list[int]]


def test_a_completion_is_taken_apart(
    reader: CompletionReader, write: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    part = reader.read([*write(5), *[tokenizer.pad_token_id] * 4])
    assert (part.thinking_tokens, part.closed, part.finished) == (5, True, True)
    assert part.answer.strip() == "Answer: 3"
    assert part.total_tokens == len(write(5)) == 5 + 1 + part.answer_tokens + 1
    assert tokenizer.decode(list(part.thought_ids)) == "77777"


def test_an_open_thought_has_no_answer(reader: CompletionReader, write: Write) -> None:
    part = reader.read(write(6, answer=None, end=False))
    assert (part.thinking_tokens, part.answer_tokens, part.total_tokens) == (6, 0, 6)
    assert not part.closed
    assert not part.finished
    assert part.answer == ""


def test_a_thought_that_the_model_opens_itself(
    tokenizer: PreTrainedTokenizerFast, reader: CompletionReader
) -> None:
    closed_prompt = CompletionReader(tokenizer, thought_open=False)
    ids = tokenizer.encode("<think>77</think>\n\n4<|im_end|>", add_special_tokens=False)
    assert closed_prompt.read(ids).thinking_tokens == 2
    assert closed_prompt.read(ids[4:]).thinking_tokens == 0
    assert not closed_prompt.read(ids[4:]).closed
    # Where the prompt has opened the thought, the marker is a token of it.
    assert reader.read(ids).thinking_tokens == 3


def test_right_wrong_unclosed_and_unscorable(accuracy: AccuracyReward, write: Write) -> None:
    ids = [write(4), write(4, "Answer: 5"), write(3, answer=None), write(4)]
    rewards = accuracy(
        ["q"] * 4,
        [""] * 4,
        ids,
        answer=["3", "3", "7", None],
        task=["embedded/dial"] * 4,
    )
    assert rewards == [1.0, 0.0, 0.0, None]


@pytest.mark.skipif(find_spec("math_verify") is None, reason="math-verify is not installed")
def test_the_row_chooses_the_verifier(accuracy: AccuracyReward, write: Write) -> None:
    ids = [write(2, "C"), write(2, "C"), write(2, "6/4"), write(2, "about 1.5")]
    rewards = accuracy(
        ["q"] * 4,
        [""] * 4,
        ids,
        answer=["C", "3", "1.5", "2.5"],
        task=["embedded/cups", "embedded/dial", "file", "file"],
    )
    assert rewards == [1.0, 0.0, 1.0, 0.0]


def test_values_metrics_and_columns_of_the_trainer(reader: CompletionReader, write: Write) -> None:
    reward = AccuracyReward(reader, right=1.0, wrong=-1.0, answer_column="gold")
    logged: dict[str, float] = {}
    rewards = reward(
        ["q", "q"],
        ["", ""],
        [write(4), write(8, answer=None)],
        gold=["3", "3"],
        trainer_state=object(),
        log_metric=logged.__setitem__,
    )
    assert rewards == [1.0, -1.0]
    # The end of sequence inside the second thought is not a thinking token.
    assert logged == {"thinking_tokens": 6.0, "closed_share": 0.5}


def test_a_missing_answer_column_is_named(accuracy: AccuracyReward, write: Write) -> None:
    with pytest.raises(TrainingError, match=r"needs a column 'answer' and the dataset has solution"):
        accuracy(["q"], [""], [write(1)], solution=["3"], log_metric=print)
    with pytest.raises(TrainingError, match="needs a column 'answer'"):
        require_columns(["prompt", "solution"], [len, accuracy])
    require_columns(["prompt", "answer"], [accuracy])


def test_groups_are_runs_of_equal_keys() -> None:
    assert consecutive_groups("aabaccc") == [range(2), range(2, 3), range(3, 4), range(4, 7)]
    assert consecutive_groups([]) == []
