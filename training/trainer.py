"""TRL's GRPO trainer with rollouts under budgets and advantages by segment: every override of TRL is in this file.

Tested with TRL 1.16. Used of its private parts: ``_generate_and_score_completions``, ``_calculate_rewards`` and
``_get_train_sampler`` (overridden, each calling TRL's), ``_tokenize_prompts``, ``_generate_single_turn``, ``_step``,
``_metrics``, ``_dist``; ``training/engine.py`` sets ``vllm_generation.generation_kwargs`` while it asks, and adds arguments
to the ``LLM`` that TRL makes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOTrainer
from trl.extras.profiling import profiling_context
from trl.models import unwrap_model_for_generation

from budgetctl.training.engine import Engine, vllm_options
from budgetctl.training.method import Method, per_token
from budgetctl.training.rollouts import FORCED, Rollout
from budgetctl.training.sampler import RowSampler, row_seeds
from budgetctl.training.schedules import NamedSchedule

#: Numbers of each rollout that reward functions get as columns and ``Method.advantages`` as tensors.
NUMBERS = ("budget", "thinking_tokens", "answer_tokens", "sampled_tokens")


class BudgetGRPOTrainer(NamedSchedule, GRPOTrainer):
    """``GRPOTrainer`` whose rollouts and advantages are those of a :class:`Method`.

    Reward functions get, beside the dataset's columns, ``budget``, ``thinking_tokens``, ``answer_tokens`` and
    ``sampled_tokens`` of each row. Inserted tokens are outside the loss (TRL's ``env_mask``), and their advantages are 0.
    Under ``use_vllm`` or ``use_transformers_continuous_batching`` TRL's engine makes the rollouts, for methods that
    allow it.

    Args:
        method: rollouts and advantages.
        round_tokens: that of :class:`RowSampler`.
        arguments: those of ``GRPOTrainer``.
    """

    _tag_names = ["trl", "grpo", "budgetctl"]  # noqa: RUF012 (TRL's own form)

    def __init__(
        self,
        *,
        method: Method,
        round_tokens: int | None = None,
        **arguments: Any,
    ) -> None:
        self.method = method
        self.round_tokens = round_tokens
        self._rollouts: list[Rollout] = []
        self._all_rewards = torch.empty(0)
        config = arguments.get("args")
        inside = config is not None and config.use_vllm and config.vllm_mode == "colocate"
        with warnings.catch_warnings(), vllm_options(method.vllm_options() if inside else {}):
            warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
            super().__init__(rollout_func=self._roll_out, **arguments)
        self.add_callback(_PlaceOfCheckpoint(self))

    def close(self) -> None:
        """End the engine inside this process, if there is one: it cannot once the process group is gone."""
        if self.use_vllm and self.args.vllm_mode == "colocate":
            self.vllm_generation.llm.llm_engine.engine_core.shutdown()

    @property
    def group_size(self) -> int:
        """Rows of a prompt, in training or evaluation as the model's mode is."""
        size = self.num_generations if self.model.training else self.num_generations_eval
        assert size is not None  # TRL's config sets both
        return size

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        self._order = EpochSampler(super()._get_train_sampler(dataset))
        return self._order

    def _roll_out(self, prompts: list[Any], trainer: GRPOTrainer) -> dict[str, Any]:
        """TRL's ``rollout_func``: one rollout for each row of this process."""
        token_lists, _, _ = self._tokenize_prompts(prompts)
        first = self.accelerator.process_index * len(prompts)
        rows = range(first, first + len(prompts))
        places = [row % self.group_size for row in rows]
        ids = [tuple(tokens) for tokens in token_lists]
        if self.use_vllm or self.use_transformers_continuous_batching:
            vllm = self.vllm_generation if self.use_vllm else None
            engine = Engine(self._generate_single_turn, vllm, tuple(self.eos_token_ids))
            self._rollouts = self.method.engine_rollouts(engine, ids, places, self.group_size)
        else:
            batch = self._step // (self.args.steps_per_generation * self.num_iterations)
            seeds = row_seeds(self.args.seed, batch, rows)
            with profiling_context(self, "budgetctl.rollouts"), self._generating() as sampler:
                self._rollouts = self.method.rollouts(sampler, ids, places, seeds, self.group_size)
        known = [r.logprobs for r in self._rollouts if r.logprobs is not None]
        return {
            "prompt_ids": [list(r.prompt_ids) for r in self._rollouts],
            "completion_ids": [list(r.completion_ids) for r in self._rollouts],
            "logprobs": [list(p) for p in known] if len(known) == len(self._rollouts) else None,
            "env_mask": [list(r.sampled) for r in self._rollouts],
            **self._numbers(),
        }

    @contextmanager
    def _generating(self) -> Iterator[RowSampler]:
        """A sampler over the model as TRL unwraps it for generation."""
        arguments = self.args
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=arguments.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=arguments.gradient_checkpointing_kwargs,
            ) as model,
            torch.no_grad(),
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
        ):
            yield self._sampler(model)

    def _sampler(self, model: PreTrainedModel) -> RowSampler:
        extra = dict(self.args.generation_kwargs or {})
        if self.repetition_penalty != 1.0:
            extra["repetition_penalty"] = self.repetition_penalty
        if self.args.cache_implementation is not None:
            extra["cache_implementation"] = self.args.cache_implementation
        return RowSampler(
            model,
            pad_id=self._tokenizer.pad_token_id,
            eos_ids=tuple(self.eos_token_ids),
            temperature=self.temperature,
            top_k=self.top_k or 0,
            top_p=self.top_p,
            min_p=self.min_p,
            round_tokens=self.round_tokens,
            extra=extra,
        )

    def _numbers(self) -> dict[str, list[int]]:
        return {
            "budget": [r.budget for r in self._rollouts],
            "thinking_tokens": [r.thinking_tokens for r in self._rollouts],
            "answer_tokens": [r.answer_tokens for r in self._rollouts],
            "sampled_tokens": [sum(r.sampled) for r in self._rollouts],
        }

    def _calculate_rewards(self, *arguments: Any, **options: Any) -> torch.Tensor:
        rewards = super()._calculate_rewards(*arguments, **options)  # [N, functions], of all processes
        total = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
        self._all_rewards = total.masked_fill(rewards.isnan().all(1), torch.nan)
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        gather, device = self.accelerator.gather, self.accelerator.device
        numbers = {name: gather(torch.tensor(v, device=device)) for name, v in self._numbers().items()}
        relative = gather(output["advantages"])
        advantages = self.method.advantages(relative, self._all_rewards, numbers, self.group_size)
        # A row that cannot be scored makes NaN of what is compared with it: no signal there.
        advantages = advantages.nan_to_num(0.0)
        mine = advantages[self.accelerator.process_index * len(inputs) :][: len(inputs)]
        width = output["completion_ids"].shape[1]
        segments, sampled = (
            torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
            for rows in ([r.segments for r in self._rollouts], [r.sampled for r in self._rollouts])
        )
        output["advantages"] = per_token(mine.to(relative.dtype), segments, sampled)
        logged: Any = self._logs["advantages"]  # TRL's own stand at its end
        kept = list(logged)[: max(len(logged) - len(advantages), 0)]
        logged.clear()
        logged.extend([*kept, *advantages.reshape(len(advantages), -1).mean(1).tolist()])
        self._note(numbers, gather(torch.tensor([r.close == FORCED for r in self._rollouts], device=device)))
        return dict(output)

    def _note(self, numbers: dict[str, torch.Tensor], forced: torch.Tensor) -> None:
        """Metrics of the rollouts, to the reporters that TRL knows."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name in ("thinking_tokens", "answer_tokens"):
            metrics[f"rollout/{name}"].append(numbers[name].double().mean().item())
        metrics["rollout/forced_closes"].append(forced.double().mean().item())
        budgets = numbers["budget"]
        for budget in budgets.unique().tolist():
            if budget:
                rewards = self._all_rewards[budgets == budget]
                metrics[f"reward/budget_{budget}"].append(rewards.nanmean().item())


class EpochSampler(Sampler[int]):
    """TRL's sampler with an order that is a function of (seed, epoch): TRL's own goes on from where its generator is,
    and a resumed run would meet the first epoch's order again."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        if self.sampler.shuffle:
            self.sampler.generator.manual_seed(self.sampler.seed + self.epoch)
        self.epoch += 1
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


class _PlaceOfCheckpoint(TrainerCallback):
    """TRL counts passes and epochs from 0 in each run: a resumed run goes on from its checkpoint's, and so do seeds and
    the order of the prompts."""

    def __init__(self, trainer: BudgetGRPOTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        self.trainer._step = state.global_step * args.gradient_accumulation_steps
        self.trainer._order.epoch = int((state.epoch or 0) + 1e-6)
