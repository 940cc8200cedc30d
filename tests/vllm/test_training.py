"""Training whose rollouts a real vLLM makes, inside the trainer's process: the policy's own, and masked where forced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: run `make test-vllm`, which has an environment of its own")
pytest.importorskip("trl", reason="needs TRL beside vLLM: run `make test-vllm`")

from safetensors.torch import load_file
from trl import GRPOConfig, ModelConfig, TrlParser

from budgetctl.evals.vllm_training import vllm_on_cpu
from budgetctl.training import brpo, elastic, hbpo, script
from budgetctl.training.rollouts import NATURAL
from budgetctl.training.trainer import BudgetGRPOTrainer

CLOSE = 4
OPTIONS: dict[str, Any] = {
    "questions": 64,
    "min_level": 5,
    "max_steps": 4,
    "per_device_train_batch_size": 16,
    "num_generations": 8,
    "max_completion_length": 96,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "save_strategy": "steps",
    "save_steps": 2,
    "report_to": "none",
    "logging_steps": 1,
    "disable_tqdm": True,
    "use_vllm": True,
    "vllm_mode": "colocate",
    "vllm_max_model_length": 512,
}
OWN: dict[str, tuple[Any, list[str]]] = {
    "elastic": (elastic.ElasticArguments, ["--thinking_budget", "24", "--answer_budget", "5"]),
    "hbpo": (hbpo.HBPOArguments, ["--budgets", "24", "64"]),
    "brpo": (
        brpo.BRPOArguments,
        ["--budgets", "16", "32", "--summaries", "2", "--answer_budget", "16"],
    ),
}


@pytest.fixture(scope="module", autouse=True)
def on_cpu() -> Iterator[None]:
    with vllm_on_cpu(enforce_eager=True):
        yield


def trainer_of(name: str, out: Path, **options: Any) -> BudgetGRPOTrainer:
    arguments, own = OWN[name]
    given = OPTIONS | {"output_dir": out} | options
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    classes: Any = (arguments, GRPOConfig, ModelConfig)
    return script.build(*TrlParser(classes).parse_args_and_config([*words, *own]))


def batch_of(trainer: BudgetGRPOTrainer) -> dict[str, torch.Tensor]:
    trainer.model.train()
    rows = next(iter(trainer.get_train_dataloader()))
    return trainer._generate_and_score_completions(rows)


def off(batch: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Largest and mean difference of the engine's log-probabilities of sampled tokens to the trainer's."""
    sampled = (batch["tool_mask"] == 1) & (batch["completion_mask"] == 1)
    apart = (batch["old_per_token_logps"] - batch["sampling_per_token_logps"]).abs()[sampled]
    return float(apart.max()), float(apart.mean())


@pytest.mark.parametrize("name", OWN)
def test_rollouts_are_the_policys_own_and_follow_its_weights(name: str, tmp_path: Path) -> None:
    """The engine's probability of every sampled token is the trainer's, before and after an update of the weights: so
    that nothing but forced tokens was changed, and none was forced unseen."""
    trainer = trainer_of(name, tmp_path)
    before = batch_of(trainer)
    assert off(before)[0] < 1e-4
    with torch.no_grad():
        for weights in trainer.model.parameters():
            weights.add_(torch.randn_like(weights) * 0.01)
    stale = batch_of(trainer)  # the engine is not told before the next step
    assert off(stale)[0] > 0.1
    trainer._last_loaded_step = -1
    after = batch_of(trainer)
    assert off(after)[0] < 1e-4
    for batch in (before, after):
        inserted = batch["tool_mask"] == 0
        assert (batch["advantages"][inserted] == 0).all()
        assert bool(inserted.any()) == (name != "hbpo")
    if name == "elastic":
        for rollout in trainer._rollouts:
            forced = rollout.close != NATURAL
            assert rollout.thinking_tokens <= 24
            assert rollout.answer_tokens <= 5
            assert sum(rollout.sampled) == len(rollout.completion_ids) - forced
            assert not forced or rollout.completion_ids[24] == CLOSE
        rewards = trainer._all_rewards.view(-1, 8)
        relative = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
        expected = relative.view(-1, 1) * (after["tool_mask"] * after["completion_mask"])
        torch.testing.assert_close(after["advantages"] * after["completion_mask"], expected)
    trainer.close()


def test_a_run_on_vllm_ends_and_is_resumed(tmp_path: Path) -> None:
    """The checkpoint's weights are the engine's from the first step of the resumed run on."""
    trainer = trainer_of("elastic", tmp_path, max_steps=2)
    script.train(trainer)
    trainer.close()
    resumed = trainer_of("elastic", tmp_path, resume_from_checkpoint="last")
    script.train(resumed)
    resumed.close()
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    steps = [entry for entry in history if "sampling/sampling_logp_difference/max" in entry]
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4]
    assert max(entry["sampling/sampling_logp_difference/max"] for entry in steps) < 1e-4
    checkpoints = [load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors") for step in (2, 4)]
    assert any(not torch.equal(old, checkpoints[1][n]) for n, old in checkpoints[0].items())
