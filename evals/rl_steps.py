"""Timed training steps of TRL's own GRPO trainer and of ours, on completions of one length.

The end of sequence and the natural close cannot be sampled, so that every completion has all its tokens and all
trainers do the same work, up to what a method adds: HBPO reads its sentence too, Elastic writes a close.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainerCallback

from budgetctl.delimiters import ThinkingDelimiters, find_delimiters

PLAIN = "trl"
#: Parts of a step; what is in none of them (rewards, advantages, the batch's way) is the rest.
PARTS = ("rollouts", "loss", "backward", "optimizer")


@dataclass(frozen=True)
class Work:
    """What a step does.

    Args:
        model: directory of a causal language model.
        rows: completions of a step.
        group: completions of a prompt; an even number.
        tokens: of a completion.
        lora: rank of adapters on all linear layers; 0 trains the model whole.
        open_text, close_text: thought markers, where the tokenizer shows none.
        opening: HBPO's sentence, with ``{budget}`` in it; None for its default.
    """

    model: str
    rows: int
    group: int
    tokens: int
    lora: int = 0
    open_text: str | None = None
    close_text: str | None = None
    opening: str | None = None


class StepTimes(TrainerCallback):
    """Processor seconds of each step and of its parts; ``profiler`` is on during the second step."""

    def __init__(self, profiler: torch.profiler.profile | None = None) -> None:
        self.steps: list[float] = []
        self.parts: dict[str, list[float]] = {part: [] for part in PARTS}
        self.profiler = profiler
        self._begun = self._updating = 0.0

    def on_step_begin(self, *arguments: Any, **others: Any) -> None:
        if self.profiler is not None and len(self.steps) == 1:
            self.profiler.start()
        for values in self.parts.values():
            values.append(0.0)
        self._begun = time.process_time()

    def on_pre_optimizer_step(self, *arguments: Any, **others: Any) -> None:
        self._updating = time.process_time()

    def on_optimizer_step(self, *arguments: Any, **others: Any) -> None:
        self.parts["optimizer"][-1] += time.process_time() - self._updating

    def on_step_end(self, *arguments: Any, **others: Any) -> None:
        self.steps.append(time.process_time() - self._begun)
        if self.profiler is not None and len(self.steps) == 2:
            self.profiler.stop()

    def timed(self, part: str, make: Callable[..., Any]) -> Callable[..., Any]:
        """``make`` with its time noted."""

        def wrapped(*arguments: Any, **options: Any) -> Any:
            begun = time.process_time()
            made = make(*arguments, **options)
            self.parts[part][-1] += time.process_time() - begun
            return made

        return wrapped


def method_arguments(name: str, work: Work, delimiters: ThinkingDelimiters) -> Any:
    """The script's options of a method, for completions of ``work.tokens`` tokens in all."""
    from budgetctl.training.brpo import BRPOArguments
    from budgetctl.training.elastic import ElasticArguments
    from budgetctl.training.grpo import GRPOArguments
    from budgetctl.training.hbpo import HBPOArguments

    tokens = work.tokens
    if name == "hbpo":
        budgets = [tokens // 2, tokens - 1]
        if work.opening is None:
            return HBPOArguments(budgets=budgets)
        return HBPOArguments(budgets=budgets, opening=work.opening)
    if name == "elastic":
        thinking = tokens // 2
        return ElasticArguments(
            thinking_budget=thinking, answer_budget=tokens - thinking - len(delimiters.forced_end_ids)
        )
    if name == "brpo":
        answer = tokens // 4
        longest = tokens - answer - len(delimiters.forced_end_ids)
        return BRPOArguments(budgets=[longest // 2, longest], summaries=1, answer_budget=answer)
    return GRPOArguments()


def step_trainer(name: str, work: Work, steps: int, folder: str) -> Any:
    """A trainer of ``steps`` optimizer steps: TRL's own by the name of ``trl``, or ours with the method of that name."""
    from trl import GRPOConfig, GRPOTrainer

    from budgetctl.training.completions import CompletionReader
    from budgetctl.training.rewards.accuracy import AccuracyReward
    from budgetctl.training.tasks import embedded_tasks
    from budgetctl.training.trainer import BudgetGRPOTrainer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(work.model, padding_side="left")
    delimiters = find_delimiters(tokenizer, open_text=work.open_text, close_text=work.close_text)
    accuracy = AccuracyReward(CompletionReader(tokenizer, delimiters, True))
    plan = method_arguments(name, work, delimiters).plan(tokenizer, delimiters, accuracy, work.tokens)
    never = {*delimiters.eos_ids, *(end[0] for end in delimiters.natural_end_ids)}
    arguments = GRPOConfig(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=work.rows,
        num_generations=work.group,
        max_completion_length=work.tokens,
        generation_kwargs={"suppress_tokens": sorted(never)},
        reward_weights=plan.weights,
        model_init_kwargs={"dtype": "float32"},
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        logging_steps=1000,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    common: dict[str, Any] = {
        "model": work.model,
        "args": arguments,
        "train_dataset": embedded_tasks(256),
        "processing_class": tokenizer,
        "reward_funcs": plan.rewards,
    }
    if work.lora:
        from peft import LoraConfig

        common["peft_config"] = LoraConfig(
            r=work.lora, lora_alpha=2 * work.lora, target_modules="all-linear", task_type="CAUSAL_LM"
        )
    return GRPOTrainer(**common) if name == PLAIN else BudgetGRPOTrainer(method=plan.method, **common)


def step_times(
    name: str, work: Work, steps: int, folder: str, profiler: torch.profiler.profile | None = None
) -> StepTimes:
    """Times of ``steps`` optimizer steps, one more before them left out."""
    trainer = step_trainer(name, work, steps + 1, folder)
    times = StepTimes(profiler)
    trainer.add_callback(times)
    trainer._generate = times.timed("rollouts", trainer._generate)
    trainer.compute_loss = times.timed("loss", trainer.compute_loss)
    trainer.accelerator.backward = times.timed("backward", trainer.accelerator.backward)
    trainer.train()
    times.steps = times.steps[1:]
    times.parts = {part: values[1:] for part, values in times.parts.items()}
    return times


def top_operators(name: str, work: Work, folder: str, count: int) -> list[tuple[str, float, int]]:
    """(operator, its own share of a step's time, calls) of the ``count`` dearest by torch.profiler, and the others
    together at the end."""
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    step_times(name, work, 1, folder, profiler)
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    rows = [(event.key, event.self_cpu_time_total / total, event.count) for event in events]
    rest = rows[count:]
    return [*rows[:count], ("others", sum(row[1] for row in rest), sum(row[2] for row in rest))]
