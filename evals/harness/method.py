"""What a method is: it answers questions under a setting, through an engine, and tells what that took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from transformers import PreTrainedTokenizerBase

from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.evals.harness.answer import Answer


@dataclass(frozen=True)
class Item:
    """One question of a task.

    Args:
        task: name of the task.
        id: distinct within the task, the same in every run.
        prompt: what the user asks.
        answer: reference answer.
        level: difficulty, or None.
        verifier: ``task`` column as ``training.verifiers.score_answer`` takes it.
        entry: its ``entry`` column.
    """

    task: str
    id: str
    prompt: str
    answer: str
    level: float | None = None
    verifier: str = ""
    entry: str = ""


@dataclass(frozen=True)
class Setting:
    """What a method is asked to keep to: a thinking budget in tokens, an effort, or neither."""

    budget: int | None = None
    effort: str | float | None = None


@dataclass(frozen=True)
class Completion:
    """What an engine made of one prompt; lengths in tokens.

    Args:
        new_ids: generated ids up to and with the end of sequence.
        thought: ids of the thought, markers not.
        answer: ids after the thought, the end of sequence not.
        close: as of :class:`~budgetctl.evals.harness.answer.Answer`; so are the fields below.
        steered: [start, stop) positions in ``thought`` at which guidance changed the likeliest token, in order.
    """

    new_ids: tuple[int, ...]
    thought: tuple[int, ...]
    answer: tuple[int, ...]
    close: str
    leaked: bool
    thinking_budget: int | None
    predicted_tokens: float | None
    predicted_cdf: float | None
    seconds: float
    kv_bytes: int | None
    steered: tuple[tuple[int, int], ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


class Engine(Protocol):
    """What runs a model: transformers, or a server.

    ``knobs`` are the fields of budgetctl's generation config (``thinking_budget``, ``effort``, ``kv_budget``,
    ``max_extensions``, ``plan``, …), one mapping for all prompts or one for each.
    """

    tokenizer: PreTrainedTokenizerBase
    delimiters: ThinkingDelimiters

    def prompt(self, question: str, *, prefill: str = "") -> list[int]:
        """Ids of the chat template's rendering of one question, ready for the thought; ``prefill`` is appended."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        seeds: Sequence[int] | None,
        max_new_tokens: int,
        knobs: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        hard_cut: int | None = None,
        offsets: Sequence[int] | None = None,
        stop_ids: Sequence[Sequence[int]] = (),
    ) -> list[Completion]:
        """Continue each prompt, in one batch.

        Args:
            prompts: ids, of any lengths. A prompt may hold a thought, open or closed: what is in it is not counted in
                the completion.
            seeds: noise of each; None is greedy decoding.
            max_new_tokens: most that is generated for each.
            knobs: of budgetctl; without any, nothing is installed.
            hard_cut: force the close at so many thinking tokens, and nothing else.
            offsets: how many tokens of each prompt were generated before, so that the noise goes on from there.
            stop_ids: token sequences after which a row ends, besides the end of sequence.
        """
        ...


class Method(Protocol):
    """A way to spend a thinking budget.

    ``takes`` says which settings it can be given: ``budget``, ``effort`` or ``none``.
    """

    name: str
    takes: Literal["budget", "effort", "none"]

    def answer(
        self,
        engine: Engine,
        items: Sequence[Item],
        setting: Setting,
        seeds: Sequence[int] | None,
        max_new_tokens: int,
    ) -> list[Answer]:
        """One answer an item, in order, all in one batch."""
        ...


def prompt_ids(tokenizer: PreTrainedTokenizerBase, question: str, prefill: str) -> list[int]:
    """Ids of the chat template's rendering of one question, or of the question itself where there is no template, and
    ``prefill`` after it."""
    if tokenizer.chat_template:
        turn = [{"role": "user", "content": question}]
        text = str(tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False))
    else:
        text = str(tokenizer.bos_token or "") + question
    return list(tokenizer(text + prefill, add_special_tokens=False).input_ids)
