"""What the training scripts share: options, the order of checks, loading, training, saving."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.trainer_utils import get_last_checkpoint
from trl import (
    GRPOConfig,
    ModelConfig,
    ScriptArguments,
    TrlParser,
    get_peft_config,
    get_quantization_config,
)

from budgetctl.closing import with_transition
from budgetctl.delimiters import ThinkingDelimiters, find_delimiters
from budgetctl.errors import BudgetctlError, TrainingError
from budgetctl.reasoner.load import WEIGHTS
from budgetctl.training.checkpointed import CheckpointedState, Stateful
from budgetctl.training.checks import check_resumable, check_schedule, check_vllm
from budgetctl.training.completions import CompletionReader
from budgetctl.training.method import Method
from budgetctl.training.rewards.accuracy import AccuracyReward
from budgetctl.training.rewards.columns import require_columns
from budgetctl.training.tasks import load_tasks, split_by_question
from budgetctl.training.trainer import BudgetGRPOTrainer


@dataclass(frozen=True)
class Plan:
    """A method with what it trains on: reward functions with their weights, and what the saved model's
    ``generation_config.json`` says of its budgets.

    ``states`` are kept in the checkpoints by their names; ``trainer`` makes the trainer, with the arguments of
    :class:`BudgetGRPOTrainer`, for a method that needs another one.
    """

    method: Method
    rewards: list[Any]
    weights: list[float]
    settings: dict[str, Any]
    states: dict[str, Stateful] = field(default_factory=dict)
    trainer: Callable[..., BudgetGRPOTrainer] = BudgetGRPOTrainer


@dataclass
class MethodArguments(ScriptArguments):
    """Options that every method has, beside those of TRL's ``GRPOConfig`` and ``ModelConfig``.

    Without ``model_name_or_path`` the embedded reasoner is trained, without ``dataset_name`` on its own questions.
    """

    questions: int | None = field(
        default=None,
        metadata={
            "help": "Number of questions; 4096 of those that are made, all of a file or dataset by default."
        },
    )
    min_level: int = field(default=1, metadata={"help": "Least number of steps of an embedded question."})
    question_column: str | None = field(default=None, metadata={"help": "Column with the questions."})
    answer_column: str | None = field(default=None, metadata={"help": "Column with the right answers."})
    instruction: str | None = field(default=None, metadata={"help": "Added to each question of a dataset."})
    eval_share: float = field(
        default=0.02,
        metadata={"help": "Share of the questions that evaluation takes, where it is switched on."},
    )
    schedule: str | None = field(
        default=None,
        metadata={
            "help": "Learning rate by 'rex' or 'uba' in place of lr_scheduler_type; their d and phi by lr_scheduler_kwargs."
        },
    )
    open_text: str | None = field(default=None, metadata={"help": "Open marker, where it is not found."})
    close_text: str | None = field(default=None, metadata={"help": "Close marker, where it is not found."})
    transition_phrase: str | None = field(
        default=None, metadata={"help": "Written before a forced close, such as 'Time is up.'"}
    )
    round_tokens: int | None = field(
        default=None,
        metadata={"help": "Tokens after which rows that have ended leave the rollout batch; pays on a CPU."},
    )

    #: Whether the method's prompts end inside an open thought, whatever the chat template does.
    opens_thoughts = True

    def check(self, training: GRPOConfig) -> None:
        """Raise a ``BudgetctlError`` for options that cannot work together."""
        raise NotImplementedError

    def prepare(self, questions: Dataset, seed: int) -> Dataset:
        """The questions as the method asks them; what it draws follows from ``seed``."""
        return questions

    def plan(
        self,
        tokenizer: PreTrainedTokenizerBase,
        delimiters: ThinkingDelimiters,
        accuracy: AccuracyReward,
        limit: int,
    ) -> Plan:
        """The method as these options describe it; ``limit`` is ``max_completion_length``."""
        raise NotImplementedError


def load_questions(script: MethodArguments, training: GRPOConfig) -> tuple[Dataset, Dataset | None]:
    """Training and, where ``eval_strategy`` asks for it, evaluation questions, disjoint. ``dataset_name`` is that of
    ``training.tasks.load_tasks``: "reasoning-gym:name,name", a file, or a hub id.

    Raises:
        TrainingError: when they cannot be read, or a column is missing.
    """
    source, count = script.dataset_name or "embedded", script.questions
    if source == "embedded" or source.startswith("reasoning-gym:"):
        options: dict[str, Any] = {"min_level": script.min_level} if source == "embedded" else {}
        count = 4096 if count is None else count
    else:
        options = {
            "name": script.dataset_config,
            "split": script.dataset_train_split,
            "question_column": script.question_column,
            "answer_column": script.answer_column,
        }
        if script.instruction is not None:
            options["instruction"] = script.instruction
    questions = load_tasks(source, count, **options)
    if training.eval_strategy == "no":
        return questions, None
    return split_by_question(questions, script.eval_share, training.seed)


def build(script: MethodArguments, training: GRPOConfig, model: ModelConfig) -> BudgetGRPOTrainer:
    """The trainer. Options, thought markers and columns are checked before the model is loaded.

    Raises:
        BudgetctlError: saying what does not fit and what to do.
    """
    if training.max_completion_length is None:
        raise TrainingError(
            "max_completion_length is unset: expected the tokens of a completion; set it to a number"
        )
    script.check(training)
    check_vllm(training)
    check_resumable(training)
    check_schedule(script.schedule, training)
    name = model.model_name_or_path or str(WEIGHTS)
    tokenizer = AutoTokenizer.from_pretrained(
        name,
        revision=model.model_revision if model.model_name_or_path else None,
        trust_remote_code=training.trust_remote_code,
        padding_side="left",
    )
    delimiters = find_delimiters(tokenizer, open_text=script.open_text, close_text=script.close_text)
    if script.transition_phrase is not None:
        delimiters = with_transition(delimiters, tokenizer, script.transition_phrase)
    train, test = load_questions(script, training)
    train = script.prepare(train, training.seed)
    test = None if test is None else script.prepare(test, training.seed)
    # Methods with budgets open the thought themselves where the template does not.
    accuracy = AccuracyReward(CompletionReader(tokenizer, delimiters, script.opens_thoughts or None))
    plan = script.plan(tokenizer, delimiters, accuracy, training.max_completion_length)
    require_columns(train.column_names, plan.rewards)
    training.reward_weights = training.reward_weights or plan.weights
    given: Any = training.model_init_kwargs or {}
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype or "float32",
        **given,
    }
    trainer = plan.trainer(
        method=plan.method,
        round_tokens=script.round_tokens,
        model=name,
        reward_funcs=plan.rewards,
        args=training,
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    trainer.use_schedule(script.schedule)
    if plan.states:
        trainer.add_callback(CheckpointedState(plan.states))
    for key, value in plan.settings.items():
        setattr(trainer.model.generation_config, key, value)
    return trainer


def train(trainer: BudgetGRPOTrainer) -> None:
    """Train, resume where ``resume_from_checkpoint`` says so, and save model, tokenizer and generation config.

    Raises:
        TrainingError: when there is no checkpoint to resume.
    """
    arguments = trainer.args
    checkpoint = arguments.resume_from_checkpoint
    if checkpoint in ("last", "true", "True", True):
        checkpoint = (
            get_last_checkpoint(arguments.output_dir) if Path(arguments.output_dir).is_dir() else None
        )
        if checkpoint is None:
            raise TrainingError(
                f"resume_from_checkpoint={arguments.resume_from_checkpoint} and no checkpoint in "
                f"{arguments.output_dir}: expected one; start without resume_from_checkpoint"
            )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(arguments.output_dir)
    trainer.save_state()
    if trainer.accelerator.is_main_process:
        trainer.accelerator.unwrap_model(trainer.model).generation_config.save_pretrained(
            arguments.output_dir
        )


def main(arguments: type[MethodArguments], argv: Sequence[str] | None = None) -> None:
    """Run a script: ``--config FILE.yaml`` and any option of the three option classes. Exit 2 on bad input."""
    classes: Any = (arguments, GRPOConfig, ModelConfig)
    parser = TrlParser(classes)
    try:
        script, training, model = parser.parse_args_and_config(argv)
        trainer = build(script, training, model)
        train(trainer)
    except BudgetctlError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    if training.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)
    trainer.close()
    # A process group left open can end the process with an error.
    trainer.accelerator.end_training()


__all__ = ["MethodArguments", "Plan", "build", "main", "train"]
