"""What has to hold between options before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

from budgetctl.errors import BudgetError, TrainingError
from budgetctl.training.schedules import check_shape

#: TRL's options that have an engine make the rollouts.
BATCHING = "use_transformers_continuous_batching"
ENGINES = ("use_vllm", BATCHING)


def check_budgets(name: str, budgets: Sequence[int], limit: int) -> None:
    """Budgets are positive, ascending, and at most ``limit`` tokens (``max_completion_length``).

    Raises:
        BudgetError: when they are not.
    """
    if not budgets or budgets[0] < 1 or any(b <= a for a, b in pairwise(budgets)):
        raise BudgetError(
            f"{name}={list(budgets)}: expected ascending numbers of tokens, at least 1; sort them"
        )
    if budgets[-1] > limit:
        raise BudgetError(
            f"{name}={list(budgets)} with max_completion_length={limit}: expected budgets of at most {limit} tokens; "
            "lower them or raise max_completion_length"
        )


def check_room(name: str, budgets: Sequence[int], answer: int, training: Any) -> None:
    """Thought and answer fit into ``max_completion_length``.

    Raises:
        BudgetError: when they do not.
    """
    if min(budgets) < 1 or answer < 1:
        raise BudgetError(
            f"{name}={list(budgets)}, answer_budget={answer}: expected at least 1 token; raise them"
        )
    if max(budgets) + answer > training.max_completion_length:
        raise BudgetError(
            f"{name} up to {max(budgets)} and answer_budget={answer} with max_completion_length="
            f"{training.max_completion_length}: expected room for both; set max_completion_length to at least "
            f"{max(budgets) + answer}"
        )


def check_divides(name: str, parts: int, group_size: int) -> None:
    """A group of ``num_generations`` rows divides into ``parts`` equal parts.

    Raises:
        TrainingError: when it does not.
    """
    if parts < 1 or group_size % parts:
        raise TrainingError(
            f"num_generations={group_size} with {parts} {name}: expected a multiple of {parts}; set num_generations to "
            f"{max(1, round(group_size / max(parts, 1))) * max(parts, 1)}"
        )


def check_block(rows: int, training: Any) -> None:
    """A process holds whole blocks of ``rows`` rows in its share of a generation batch.

    Raises:
        TrainingError: when it does not.
    """
    share = training.per_device_train_batch_size * training.steps_per_generation
    if share % rows:
        raise TrainingError(
            f"per_device_train_batch_size x steps_per_generation = {share} rows a process: expected a multiple of the "
            f"{rows} rows of a thought; raise per_device_train_batch_size or gradient_accumulation_steps"
        )


def check_vllm(training: Any) -> None:
    """vLLM is installed where it is to make the rollouts.

    Raises:
        TrainingError: when it is not.
    """
    if training.use_vllm and find_spec("vllm") is None:
        raise TrainingError(
            "use_vllm=True and vLLM is not installed: expected a release that TRL supports; pip install 'trl[vllm]', or "
            "unset use_vllm"
        )


def refuse_engines(name: str, why: str, training: Any, engines: Sequence[str] = ENGINES) -> None:
    """For methods whose rollouts some engines of TRL cannot make.

    Raises:
        TrainingError: when one of ``engines``, names of TRL's options, is switched on.
    """
    for option in engines:
        if getattr(training, option, False):
            raise TrainingError(
                f"{option}=True with {name}, {why}: expected {option}=False; unset it, or use hbpo or grpo"
            )


def refuse_transition(phrase: str | None, training: Any) -> None:
    """A server's processor writes the close that the tokenizer shows.

    Raises:
        TrainingError: for another one together with a vLLM server.
    """
    if phrase is not None and training.use_vllm and training.vllm_mode == "server":
        raise TrainingError(
            f"transition_phrase={phrase!r} with vllm_mode=server, which does not know it: expected none; unset it, or "
            "set vllm_mode to colocate"
        )


def check_resumable(training: Any) -> None:
    """Checkpoints lie where a generation batch is used up: from others a run could not go on as it was.

    Raises:
        TrainingError: when they do not.
    """
    period = training.steps_per_generation * training.num_iterations
    passes = training.save_steps * training.gradient_accumulation_steps
    if training.save_strategy == "steps" and training.save_steps >= 1 and passes % period:
        raise TrainingError(
            f"save_steps={training.save_steps:g} saves in the middle of a generation batch, which is used for {period} "
            f"passes: expected whole batches; set save_steps to a multiple of "
            f"{-(-period // training.gradient_accumulation_steps)}"
        )


def check_schedule(name: str | None, training: Any) -> None:
    """A schedule of ``training.schedules`` with parameters that it has (``lr_scheduler_kwargs``), or None.

    Raises:
        TrainingError: for another name or parameter, or an impossible value.
    """
    if name is not None:
        check_shape(name, training.lr_scheduler_kwargs or {})
