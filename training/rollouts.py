"""Rollouts under budgets, as plain functions over any causal LM and its thought markers.

A rollout says of each completion token whether the model sampled it (it bears the loss then) or it was inserted, and
to which segment it belongs: methods give their advantages by segment. Sources: Elastic Reasoning (arXiv 2505.05315)
for thought and answer under budgets of their own, AnytimeReasoner (2505.13438) for one thought truncated at several
budgets with several summaries each, HBPO (2507.15844) for the budget named at the thought's beginning.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from budgetctl.delimiters import ThinkingDelimiters, Tokens

NATURAL, FORCED, NONE = "natural", "forced", "none"
#: Log-probabilities of tokens under what they were drawn from; None for one that is not known.
Logprobs = tuple[float | None, ...]


class Sampler(Protocol):
    """What continues rows: :class:`~budgetctl.training.sampler.RowSampler`, or an engine."""

    @property
    def eos_ids(self) -> Tokens:
        """Ids that end a row."""

    def extend(
        self,
        prefixes: Sequence[Tokens],
        seeds: Sequence[int],
        limits: Sequence[int],
        stops: Sequence[Tokens] = (),
    ) -> list[Tokens]:
        """New tokens of each row: at most ``limits[i]``, up to and with its first end of sequence or stop."""


@dataclass(frozen=True)
class Rollout:
    """One completion of a prompt. Lengths are in tokens.

    Args:
        prompt_ids: the prompt, with whatever the method wrote after it.
        completion_ids: everything after it, inserted tokens included.
        sampled: 1 where the model sampled the token and is to learn from it here, 0 elsewhere; as long as the completion.
        segments: the segment of each token, into which a method's advantages [.., K] are indexed.
        thinking_tokens: length of the thought, without its close.
        answer_tokens: tokens after the close, the end of sequence included.
        close: how the thought ended: "natural", "forced", or "none" when it did not.
        budget: the budget that the rollout was under, 0 for none.
        logprobs: of each token where an engine drew it, 0 where it was inserted; None where the trainer's model did.
    """

    prompt_ids: Tokens
    completion_ids: Tokens
    sampled: Tokens
    segments: Tokens
    thinking_tokens: int
    answer_tokens: int
    close: str
    budget: int = 0
    logprobs: Logprobs | None = None


def split_completion(completion: Tokens, delimiters: ThinkingDelimiters) -> tuple[int, int | None]:
    """Length of the thought, and where the answer begins (None when the thought never closed).

    The thought is open at the beginning of the completion (an open marker that the model writes itself is counted);
    of ends that complete at the same token the longest is taken, and a forced close is one like another.
    """
    for at in range(1, len(completion) + 1):
        lengths = [
            len(end) for end in delimiters.end_variants if completion[max(at - len(end), 0) : at] == end
        ]
        if lengths:
            return at - max(lengths), at
    return len(completion), None


def open_thought(prompt: Tokens, delimiters: ThinkingDelimiters) -> Tokens:
    """The prompt with the thought opened, where the chat template leaves that to the model."""
    if delimiters.implicit:
        return prompt
    marks = [(at, True) for opening in delimiters.all_opens for at in _found(prompt, opening)]
    marks += [(at, False) for end in delimiters.end_variants for at in _found(prompt, end)]
    return prompt if marks and max(marks)[1] else (*prompt, *delimiters.open_ids)


def _found(tokens: Tokens, marker: Tokens) -> list[int]:
    return [at for at in range(len(tokens)) if tokens[at : at + len(marker)] == marker]


def free(
    sampler: Sampler,
    delimiters: ThinkingDelimiters,
    prompts: Sequence[Tokens],
    seeds: Sequence[int],
    limit: int,
    budgets: Sequence[int] | None = None,
) -> list[Rollout]:
    """Thought and answer in one go, at most ``limit`` tokens together; ``budgets`` are noted, not enforced."""
    completions = sampler.extend(prompts, seeds, [limit] * len(prompts))
    noted = budgets or [0] * len(prompts)
    return [
        as_sampled(prompt, completion, delimiters, budget)
        for prompt, completion, budget in zip(prompts, completions, noted, strict=True)
    ]


def as_sampled(
    prompt: Tokens,
    completion: Tokens,
    delimiters: ThinkingDelimiters,
    budget: int = 0,
    logprobs: Logprobs | None = None,
) -> Rollout:
    """A completion whose every token the model sampled: segment 0 is the thought and its close, 1 the answer."""
    thought, answer_at = split_completion(completion, delimiters)
    start = len(completion) if answer_at is None else answer_at
    return Rollout(
        prompt_ids=prompt,
        completion_ids=completion,
        sampled=(1,) * len(completion),
        segments=(0,) * start + (1,) * (len(completion) - start),
        thinking_tokens=thought,
        answer_tokens=len(completion) - start,
        close=NONE if answer_at is None else NATURAL,
        budget=budget,
        logprobs=logprobs,
    )


def budget_forced(
    sampler: Sampler,
    delimiters: ThinkingDelimiters,
    prompts: Sequence[Tokens],
    seeds: Sequence[int],
    thinking: Sequence[int],
    answer: int,
) -> list[Rollout]:
    """At most ``thinking[i]`` tokens of thought, a close that is written where the model wrote none, then at most
    ``answer`` tokens (Elastic Reasoning). Segment 0 is the thought and its close, 1 the answer.

    A thought of exactly its budget is closed by force: its close would be one token more. A written close is no choice
    of the model, so its tokens are not ``sampled``; the paper's code counts them in the loss. A thought that ends the
    sequence stays without an answer.
    """
    thoughts = sampler.extend(prompts, seeds, thinking, delimiters.natural_end_ids)
    closes = [_closing(t, b, delimiters, sampler.eos_ids) for t, b in zip(thoughts, thinking, strict=True)]
    starts = [(*p, *t, *c) for p, t, c in zip(prompts, thoughts, (close[1] for close in closes), strict=True)]
    answers = _answers(sampler, starts, seeds, [0 if kind == NONE else answer for kind, _, _ in closes])
    return [
        Rollout(
            prompt_ids=prompt,
            completion_ids=(*thought, *written, *reply),
            sampled=(1,) * len(thought) + (0,) * len(written) + (1,) * len(reply),
            segments=(0,) * (len(thought) + len(written)) + (1,) * len(reply),
            thinking_tokens=length,
            answer_tokens=len(reply),
            close=kind,
            budget=budget,
        )
        for prompt, thought, (kind, written, length), reply, budget in zip(
            prompts, thoughts, closes, answers, thinking, strict=True
        )
    ]


def truncated_summaries(
    sampler: Sampler,
    delimiters: ThinkingDelimiters,
    prompts: Sequence[Tokens],
    seeds: Sequence[int],
    budgets: Sequence[int],
    summaries: int,
    answer: int,
) -> list[Rollout]:
    """One thought for each prompt, truncated at each of S ascending ``budgets``, with ``summaries`` answers of at most
    ``answer`` tokens each (AnytimeReasoner): S * summaries rollouts a prompt, by truncation and then by summary.

    Segment s < S holds the thought's tokens from budget s - 1 to budget s, segment S the answer. The thought bears its
    loss in one of its rollouts only (the first of the largest budget): elsewhere it is context.

    Args:
        prompts: one a thought.
        seeds: S * summaries a thought, those of its rows; the thought is drawn by the first of them.
    """
    rows = len(budgets) * summaries
    firsts = [seeds[rows * i] for i in range(len(prompts))]
    thoughts = sampler.extend(prompts, firsts, [budgets[-1]] * len(prompts), delimiters.natural_end_ids)
    cuts = []
    for prompt, thought in zip(prompts, thoughts, strict=True):
        natural = _closing(thought, budgets[-1], delimiters, sampler.eos_ids)
        for budget in budgets:
            shortened = natural[0] == FORCED or budget <= natural[2]
            kept = thought[:budget] if shortened else thought
            kind, written, length = (FORCED, delimiters.forced_end_ids, len(kept)) if shortened else natural
            cuts += [(prompt, kept, kind, written, length, budget)] * summaries
    starts = [(*prompt, *kept, *written) for prompt, kept, _, written, _, _ in cuts]
    answers = _answers(sampler, starts, seeds, [0 if kind == NONE else answer for _, _, kind, *_ in cuts])
    rollouts = []
    for number, ((prompt, kept, kind, written, length, budget), reply) in enumerate(
        zip(cuts, answers, strict=True)
    ):
        bears = int(number % rows == rows - summaries)
        parts = [min(bisect_right(budgets, at), len(budgets) - 1) for at in range(len(kept))]
        rollouts.append(
            Rollout(
                prompt_ids=prompt,
                completion_ids=(*kept, *written, *reply),
                sampled=(bears,) * len(kept) + (0,) * len(written) + (1,) * len(reply),
                segments=(*parts, *[0] * len(written), *[len(budgets)] * len(reply)),
                thinking_tokens=length,
                answer_tokens=len(reply),
                close=kind,
                budget=budget,
            )
        )
    return rollouts


def _closing(
    thought: Tokens, budget: int, delimiters: ThinkingDelimiters, eos_ids: Tokens
) -> tuple[str, Tokens, int]:
    """How a thought as sampled (its own close included) ends: the kind, what is to be written, its length."""
    length, answer_at = split_completion(thought, delimiters)
    if answer_at is not None:
        return NATURAL, (), length
    if thought and thought[-1] in eos_ids:
        return NONE, (), len(thought) - 1
    return FORCED, delimiters.forced_end_ids, len(thought)


def _answers(
    sampler: Sampler, starts: Sequence[Tokens], seeds: Sequence[int], limits: Sequence[int]
) -> list[Tokens]:
    """Answers after ``starts``, with noise apart from the thoughts'."""
    return sampler.extend(starts, [~seed for seed in seeds], limits)
