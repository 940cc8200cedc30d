"""One call of the engine for a batch of prompts, and what the method generated besides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from budgetctl.errors import EvalError
from budgetctl.evals.harness.answer import Answer
from budgetctl.evals.harness.grade import grade
from budgetctl.evals.harness.method import Completion, Engine, Item, Setting


@dataclass(frozen=True)
class Besides:
    """What answering one question took besides the call that answers it.

    Args:
        overhead_tokens: generated, tokens.
        read_tokens: prompt tokens of calls after the first.
        seconds: of those calls, each divided by its questions.
        extra: JSON values for the record.
    """

    overhead_tokens: int = 0
    read_tokens: int = 0
    seconds: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)


def answer_in_one_call(
    method: str,
    engine: Engine,
    items: Sequence[Item],
    setting: Setting,
    seeds: Sequence[int] | None,
    max_new_tokens: int,
    *,
    prompts: Sequence[Sequence[int]] | None = None,
    besides: Sequence[Besides] | None = None,
    probes: bool = False,
    **arguments: Any,
) -> list[Answer]:
    """One answer an item.

    Args:
        method: its name.
        engine: that is asked.
        items: the questions.
        setting: of the method.
        seeds: noise of each; None for greedy decoding.
        max_new_tokens: of each.
        prompts: ids; by default each question in the chat template.
        besides: what each took before.
        probes: the call probes its thoughts, and the completions tell what that cost.
        arguments: of ``engine.generate``.

    Raises:
        EvalError: the engine does not tell what its probes cost.
    """
    if prompts is None:
        prompts = [engine.prompt(item.prompt) for item in items]
    completions = engine.generate(prompts, seeds=seeds, max_new_tokens=max_new_tokens, **arguments)
    noise: Sequence[int | None] = [None] * len(items) if seeds is None else seeds
    answers = []
    for item, completion, seed, more in zip(
        items, completions, noise, besides or [Besides()] * len(items), strict=True
    ):
        tokens, read = probe_cost(method, completion) if probes else (0, 0)
        answers.append(
            grade(
                engine,
                item,
                replace(completion, seconds=completion.seconds + more.seconds),
                method=method,
                setting=setting,
                seed=seed,
                overhead_tokens=more.overhead_tokens + tokens,
                read_tokens=more.read_tokens + read,
                extra=more.extra,
            )
        )
    return answers


def probe_cost(method: str, completion: Completion) -> tuple[int, int]:
    """Tokens that the probes of a completion generated, and tokens that they read.

    Raises:
        EvalError: it does not tell.
    """
    try:
        return int(completion.extra["probe_tokens"]), int(completion.extra["read_tokens"])
    except KeyError as missing:
        raise EvalError(
            f"method {method!r} on an engine that does not tell its {missing.args[0]}: expected an engine with the "
            "early_exit knob; use the transformers engine"
        ) from None
