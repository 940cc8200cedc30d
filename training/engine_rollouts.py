"""Rollouts that an engine made: what it was asked for is read from its tokens, and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from budgetctl.delimiters import ThinkingDelimiters, Tokens
from budgetctl.errors import TrainingError
from budgetctl.training.rollouts import FORCED, NATURAL, NONE, Logprobs, Rollout, split_completion


def forced_by_engine(
    prompt: Tokens,
    completion: Tokens,
    delimiters: ThinkingDelimiters,
    eos_ids: Tokens,
    budget: int,
    answer: int,
    logprobs: Logprobs | None = None,
) -> Rollout:
    """What :func:`~budgetctl.training.rollouts.budget_forced` makes in two calls, from one call of an engine that
    closes a thought of ``budget`` tokens (``budgetctl.integrations.vllm:BudgetForcingLogitsProcessor``).

    The engine forces tokens where ``budget`` tokens stand and the thought is open, and nowhere else: so those from
    there to the answer are the inserted ones. It knows no limit of the answer alone, and the answer is cut here: the
    first ``answer`` tokens of a longer sample are a sample of that limit. A close of several tokens that the model had
    begun at the budget is completed, where ``budget_forced`` writes all of it.

    Raises:
        TrainingError: when the engine went past the budget, or stopped inside the thought.
    """
    length, answer_at = split_completion(completion, delimiters)
    end = len(completion) if answer_at is None else answer_at
    ended = answer_at is None and bool(completion) and completion[-1] in eos_ids
    if answer_at is None and not ended and end <= budget:
        raise TrainingError(
            f"the engine stopped after {end} tokens, inside a thought of at most {budget}: expected room for prompt, "
            "thought and answer; raise vllm_max_model_length, or --max-model-len of the server"
        )
    length -= ended
    written = completion[budget:end]
    if answer_at is None:
        kept_budget = ended and end <= budget
    else:
        kept_budget = length <= budget and _goes_on(completion[:budget], written, delimiters.forced_end_ids)
    if not kept_budget:
        raise TrainingError(
            f"the engine wrote a thought of {length} tokens under a budget of {budget} and not this trainer's close: "
            "expected budget forcing with the same markers; start the server with --logits-processors "
            "budgetctl.integrations.vllm:BudgetForcingLogitsProcessor"
        )
    kind = NONE if answer_at is None else FORCED if written else NATURAL
    kept = completion[: end + answer]
    reply = len(kept) - end
    return Rollout(
        prompt_ids=prompt,
        completion_ids=kept,
        sampled=(1,) * (end - len(written)) + (0,) * len(written) + (1,) * reply,
        segments=(0,) * end + (1,) * reply,
        thinking_tokens=length,
        answer_tokens=reply,
        close=kind,
        budget=budget,
        logprobs=None if logprobs is None else logprobs[: len(kept)],
    )


def _goes_on(thought: Tokens, written: Tokens, close: Tokens) -> bool:
    """Whether ``written`` is ``close`` from where the end of the thought has it."""
    return any(
        written == close[begun : begun + len(written)] and thought[len(thought) - begun :] == close[:begun]
        for begun in range(min(len(close), len(thought) + 1))
    )


def with_logprobs(
    rollouts: Sequence[Rollout],
    thoughts: Sequence[Logprobs | None],
    answers: Sequence[Logprobs | None],
    rows: int,
) -> list[Rollout]:
    """``rollouts`` of :func:`~budgetctl.training.rollouts.truncated_summaries` with the log-probabilities of what was
    sampled, 0 elsewhere.

    Args:
        thoughts: of each thought's tokens, one for ``rows`` rollouts.
        answers: of each rollout's answer.
    """
    done = []
    for number, (rollout, reply) in enumerate(zip(rollouts, answers, strict=True)):
        thought = thoughts[number // rows]
        if thought is None or reply is None:
            done.append(rollout)
            continue
        start = len(rollout.completion_ids) - rollout.answer_tokens
        drawn = (*thought, *[0.0] * start)[:start] + reply
        known = tuple(p if mine else 0.0 for p, mine in zip(drawn, rollout.sampled, strict=True))
        done.append(replace(rollout, logprobs=known))
    return done
