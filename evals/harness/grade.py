"""From what an engine made of a question to the answer that is recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from budgetctl.evals.harness.answer import Answer
from budgetctl.evals.harness.method import Completion, Engine, Item, Setting
from budgetctl.evals.harness.spans import character_spans
from budgetctl.training.verifiers import score_answer


def grade(
    engine: Engine,
    item: Item,
    completion: Completion,
    *,
    method: str,
    setting: Setting,
    seed: int | None,
    overhead_tokens: int = 0,
    read_tokens: int = 0,
    extra: Mapping[str, Any] | None = None,
) -> Answer:
    """Judge a completion by its answer alone; one without an answer is wrong.

    Args:
        engine: whose tokenizer reads the ids.
        item: the question.
        completion: of its prompt; a method of several calls gives all of them as one.
        method: its name.
        setting: what the method was asked to keep to.
        seed: of the noise; None for greedy decoding.
        overhead_tokens: generated besides thought and answer, tokens.
        read_tokens: prompt tokens of calls after the first.
        extra: added to the completion's own.

    Raises:
        TrainingError: the item names no verifier that there is.
    """
    text = engine.tokenizer.decode(list(completion.answer), skip_special_tokens=True).strip()
    score = score_answer(text, item.answer, item.verifier, item.entry) if text else 0.0
    return Answer(
        task=item.task,
        item=item.id,
        method=method,
        budget=setting.budget,
        effort=setting.effort,
        seed=-1 if seed is None else seed,
        level=item.level,
        correct=score >= 1,
        score=score,
        thinking_tokens=len(completion.thought),
        answer_tokens=len(completion.answer),
        overhead_tokens=overhead_tokens,
        read_tokens=read_tokens,
        close=completion.close,
        leaked=completion.leaked,
        thinking_budget=completion.thinking_budget,
        predicted_tokens=completion.predicted_tokens,
        predicted_cdf=completion.predicted_cdf,
        seconds=completion.seconds,
        kv_bytes=completion.kv_bytes,
        thought=engine.tokenizer.decode(list(completion.thought)),
        answer=text,
        expected=item.answer,
        prompt=item.prompt,
        steered=character_spans(engine.tokenizer, completion.thought, completion.steered),
        extra={**completion.extra, **(extra or {})},
    )
