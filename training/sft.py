"""Supervised warm-up on budget prompts: ``python -m budgetctl.training.sft --config training/recipes/sft_tiny.yaml``.

TRL's ``SFTTrainer`` with all its options (LoRA by ``use_peft``), on data of ``budgetctl.training.mode_data``, on any
file or hub dataset with ``prompt`` and ``completion``, or, without ``data``, on written thoughts of the embedded family.
The loss is on completions alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser, get_peft_config, get_quantization_config

from budgetctl.delimiters import find_delimiters
from budgetctl.errors import BudgetctlError, TrainingError
from budgetctl.reasoner.load import WEIGHTS
from budgetctl.training.checks import check_schedule
from budgetctl.training.hindsight import builder
from budgetctl.training.schedules import NamedSchedule
from budgetctl.training.script import train
from budgetctl.training.sft_data import balanced, joined, tokenize_rows
from budgetctl.training.sources import read_dataset
from budgetctl.training.tasks import split_by_question
from budgetctl.training.teacher import teacher_thoughts


@dataclass
class SFTArguments:
    """Options beside those of TRL's ``SFTConfig`` and ``ModelConfig``.

    Without ``model_name_or_path`` the embedded reasoner is trained.
    """

    data: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Files or hub ids with prompt and completion, one or more; written thoughts of the embedded family if left out."
        },
    )
    kind: str = field(
        default="l1-max", metadata={"help": "Of written thoughts: l1-exact, l1-max, effort or hbpo."}
    )
    questions: int = field(default=1024, metadata={"help": "Of written thoughts: number of questions."})
    samples: int = field(default=2, metadata={"help": "Of written thoughts: thoughts a question."})
    budgets: list[int] = field(
        default_factory=list, metadata={"help": "Of written thoughts, kind hbpo: budgets in tokens."}
    )
    balance: str | None = field(
        default=None, metadata={"help": "Column of which each value is to have as many rows, such as mode."}
    )
    eval_share: float = field(
        default=0.02, metadata={"help": "Share of the questions for evaluation, where it is switched on."}
    )
    schedule: str | None = field(
        default=None, metadata={"help": "Learning rate by 'rex' or 'uba' in place of lr_scheduler_type."}
    )

    def __post_init__(self) -> None:
        # A recipe may name a single file without brackets.
        if isinstance(self.data, str):
            self.data = [self.data]


class WarmUpTrainer(NamedSchedule, SFTTrainer):
    """``SFTTrainer`` with the schedules of ``training/schedules.py``."""


def load_rows(script: SFTArguments, tokenizer: PreTrainedTokenizerBase, seed: int) -> Dataset:
    """The rows with ``prompt`` and ``completion`` that the options ask for.

    Raises:
        BudgetctlError: they cannot be read or made.
    """
    if script.data:
        rows = joined([read_dataset(source) for source in script.data], tokenizer)
    else:
        make = builder(script.kind, script.budgets, seed)
        delimiters = find_delimiters(tokenizer)
        thoughts = teacher_thoughts(script.questions, script.samples, tokenizer, delimiters, seed)
        found = make(thoughts, tokenizer, lambda answer, row: True)
        if not found:
            raise TrainingError(
                f"no written thought for {script.questions} questions, kind {script.kind!r} and budgets "
                f"{script.budgets}: expected some; ask for more questions, or larger budgets"
            )
        rows = Dataset.from_list(found)
    return rows if script.balance is None else balanced(rows, script.balance)


def build(script: SFTArguments, training: SFTConfig, model: ModelConfig) -> WarmUpTrainer:
    """The trainer. Options and data are checked before the model is loaded.

    Raises:
        BudgetctlError: saying what does not fit and what to do.
    """
    check_schedule(script.schedule, training)
    name = model.model_name_or_path or str(WEIGHTS)
    tokenizer = AutoTokenizer.from_pretrained(
        name,
        revision=model.model_revision if model.model_name_or_path else None,
        trust_remote_code=training.trust_remote_code,
    )
    rows = load_rows(script, tokenizer, training.seed)
    test: Dataset | None = None
    if training.eval_strategy != "no":
        if "question_id" not in rows.column_names:
            raise TrainingError(
                f"eval_strategy={training.eval_strategy} and no column 'question_id': expected it, so that no question is "
                "trained on and evaluated; make the data with budgetctl.training.mode_data, or set eval_strategy to no"
            )
        rows, held_out = split_by_question(rows, script.eval_share, training.seed)
        test, _ = tokenize_rows(held_out, tokenizer, training.max_length)
    examples, dropped = tokenize_rows(rows, tokenizer, training.max_length)
    if dropped:
        sys.stderr.write(f"{dropped} of {len(rows)} examples are longer than max_length: left out\n")
    given: Any = training.model_init_kwargs or {}
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype or "float32",
        **given,
    }
    trainer = WarmUpTrainer(
        model=name,
        args=training,
        train_dataset=examples,
        eval_dataset=test,
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    trainer.use_schedule(script.schedule)
    return trainer


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script: ``--config FILE.yaml`` and any option of the three option classes. Exit 2 on bad input."""
    classes: Any = (SFTArguments, SFTConfig, ModelConfig)
    script, training, model = TrlParser(classes).parse_args_and_config(argv)
    try:
        trainer: Any = build(script, training, model)
        train(trainer)
    except BudgetctlError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
