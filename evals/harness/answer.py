"""One answered question: a line of ``records.jsonl``, from which every measure is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from budgetctl.errors import EvalError


@dataclass(frozen=True)
class Answer:
    """One question answered by one method under one setting and one seed; lengths in tokens.

    Args:
        task: name of the task.
        item: id of the question, distinct within the task.
        method: name of the method.
        budget: thinking budget that the method was given; None without one.
        effort: effort that the method was given (a level's name or a number); None without one.
        seed: of the sampling noise; -1 where decoding was greedy.
        level: difficulty of the question; None where the task has none.
        correct: by the task's verifier, on the answer alone.
        score: 0 to 1, for tasks with partial credit; else as ``correct``.
        thinking_tokens: of the thought, forced tokens among them, markers not.
        answer_tokens: after the thought.
        overhead_tokens: what the method generated besides: probes, planners, estimates of a budget.
        read_tokens: prompt tokens of calls after the first, which an engine without a prefix cache computes again.
        close: how the thought ended: ``natural``, ``steered``, ``forced``, ``early`` or ``none``.
        leaked: whether markers of a thought stand in the answer.
        thinking_budget: limit in force for this question, as effort or plan made it; None without one.
        predicted_tokens: natural length that was predicted at the start of the thought; None without a predictor.
        predicted_cdf: probability that the predictor gave to a length of at most the actual one, at the start of the
            thought; None without a predictor, or where the thought did not end by the model's own will.
        seconds: the batch's time divided by its questions.
        kv_bytes: peak of the key-value cache divided by the batch's questions; None where it was not counted.
        thought: its text.
        answer: text of the answer.
        expected: the reference answer.
        prompt: the question.
        steered: [start, stop) characters of ``thought`` where guidance changed the likeliest token, in order.
        extra: what a method tells besides, such as the number of its probes; JSON values.
    """

    task: str
    item: str
    method: str
    budget: int | None
    effort: str | float | None
    seed: int
    level: float | None
    correct: bool
    score: float
    thinking_tokens: int
    answer_tokens: int
    overhead_tokens: int
    read_tokens: int
    close: str
    leaked: bool
    thinking_budget: int | None
    predicted_tokens: float | None
    predicted_cdf: float | None
    seconds: float
    kv_bytes: int | None
    thought: str
    answer: str
    expected: str
    prompt: str
    steered: tuple[tuple[int, int], ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """All that was generated."""
        return self.thinking_tokens + self.answer_tokens + self.overhead_tokens

    @property
    def cell(self) -> tuple[str, str, int | None, str | float | None, int]:
        """What was run: task, method, budget, effort, seed."""
        return self.task, self.method, self.budget, self.effort, self.seed

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Answer:
        """The inverse of :meth:`as_dict`.

        Raises:
            EvalError: fields are missing or unknown.
        """
        names = {one.name for one in fields(cls)}
        wrong = sorted(names ^ set(row))
        if wrong:
            raise EvalError(
                f"a record differs in {', '.join(wrong)}: expected the fields of this version; start a new run"
            )
        steered = tuple((int(start), int(stop)) for start, stop in row["steered"])
        return cls(**{**row, "steered": steered})
