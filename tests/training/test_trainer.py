"""The trainer on a tiny model: what a step learns from, and what it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import log_softmax
from trl import GRPOConfig, GRPOTrainer, ModelConfig, TrlParser

from budgetctl.training.engine import vllm_options
from budgetctl.training.method import per_token
from budgetctl.training.script import build
from budgetctl.training.trainer import BudgetGRPOTrainer
from tests.training.run_method import SCRIPTS
from tests.training.tiny import OPTIONS, OWN, command_line, reward_by_ids

Make = Callable[..., BudgetGRPOTrainer]


@pytest.fixture
def make(tiny: Path, tmp_path: Path) -> Make:
    def made(name: str, **options: Any) -> BudgetGRPOTrainer:
        words = command_line(
            {**OPTIONS, "model_name_or_path": tiny, "output_dir": tmp_path / name, **OWN[name], **options}
        )
        classes: Any = (SCRIPTS[name], GRPOConfig, ModelConfig)
        return build(*TrlParser(classes).parse_args_and_config(words))

    return made


def generated(trainer: BudgetGRPOTrainer) -> dict[str, torch.Tensor]:
    reward_by_ids(trainer)
    trainer.model.train()
    rows = next(iter(trainer.get_train_dataloader()))
    return trainer._generate_and_score_completions(rows)


@pytest.mark.parametrize("name", SCRIPTS)
def test_forced_tokens_have_no_advantage_and_no_mask(name: str, make: Make) -> None:
    trainer = make(name)
    batch = generated(trainer)
    advantages, mask = batch["advantages"], batch["tool_mask"]
    assert advantages.shape == batch["completion_ids"].shape
    for row, rollout in enumerate(trainer._rollouts):
        assert mask[row, : len(rollout.sampled)].tolist() == list(rollout.sampled)
        assert batch["completion_ids"][row, : len(rollout.sampled)].tolist() == list(rollout.completion_ids)
    assert (advantages[mask == 0] == 0).all()
    assert (advantages[(mask == 1) & (batch["completion_mask"] == 1)] != 0).any()
    rows = [row[row != 0].unique().tolist() for row in advantages]
    assert len(trainer._logs["advantages"]) == 8
    if name != "brpo":  # one advantage a row, and that one is logged
        assert all(
            len(row) <= 1 and sum(row) == pytest.approx(logged)
            for row, logged in zip(rows, trainer._logs["advantages"], strict=True)
        )
    inserted = (mask == 0).any()
    assert bool(inserted) == (name in ("elastic", "brpo"))


@pytest.mark.parametrize("name", ["elastic", "brpo"])
def test_no_gradient_flows_through_forced_tokens(
    name: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(name)
    batch = generated(trainer)
    logps = torch.randn(batch["completion_ids"].shape, requires_grad=True)
    monkeypatch.setattr(
        trainer, "_get_per_token_logps_and_entropies", lambda *a, **k: (logps, torch.zeros_like(logps), None)
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(trainer.model, batch).backward()
    assert logps.grad is not None
    forced = (batch["tool_mask"] == 0) | (batch["completion_mask"] == 0)
    assert (logps.grad[forced] == 0).all()
    learned = ~forced & (batch["advantages"] != 0)
    assert learned.any()
    assert (logps.grad[learned] != 0).all()


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_gradient_is_that_of_the_sampled_tokens(name: str, make: Make) -> None:
    """By a plain forward pass: sum over sampled tokens of advantage x log-probability, over their number."""
    trainer = make(name)
    batch = generated(trainer)
    trainer.current_gradient_accumulation_steps = 1
    model = trainer.model
    trainer._compute_loss(model, batch).backward()
    got = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    loss, count = torch.zeros(()), 0
    for row, rollout in enumerate(trainer._rollouts):
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]])
        start = len(rollout.prompt_ids)
        logits = model(ids).logits[0, start - 1 : -1]
        logps = log_softmax(logits, -1).gather(1, ids[0, start:, None])[:, 0]
        sampled = torch.tensor(rollout.sampled)
        loss = loss - (sampled * batch["advantages"][row, : len(sampled)] * logps).sum()
        count += int(sampled.sum())
    (loss / count).backward()
    assert max(float(p.grad.abs().max()) for p in model.parameters()) > 1e-4
    for n, p in model.named_parameters():
        torch.testing.assert_close(got[n], p.grad, rtol=1e-3, atol=1e-6)


def test_hbpo_with_one_subgroup_takes_the_step_of_grpo(make: Make) -> None:
    """Same prompts, same noise, same rewards: the advantages are those that TRL computes."""
    trainer = make("hbpo", budgets=[8])
    batch = generated(trainer)
    plain = GRPOTrainer._generate_and_score_completions(trainer, next(iter(trainer.get_train_dataloader())))
    assert torch.equal(batch["completion_ids"], plain["completion_ids"])
    mask = batch["completion_mask"] == 1
    expected = plain["advantages"][:, None].expand_as(batch["advantages"])
    assert torch.equal(batch["advantages"][mask], expected[mask])
    assert expected.unique().numel() > 2


def test_rows_of_a_thought_share_it(make: Make) -> None:
    trainer = make("brpo", num_generations=8, summaries=2)
    generated(trainer)
    for start in range(0, 8, 4):
        longest = trainer._rollouts[start + 3]
        for rollout in trainer._rollouts[start : start + 4]:
            assert (
                rollout.completion_ids[: rollout.thinking_tokens]
                == longest.completion_ids[: rollout.thinking_tokens]
            )
    assert trainer._rollouts[0].completion_ids[:3] != trainer._rollouts[4].completion_ids[:3]


def test_an_unscorable_row_teaches_nothing(make: Make) -> None:
    trainer = make("brpo", summaries=2, num_generations=8)

    def accuracy(
        prompts: list[Any], completions: list[Any], completion_ids: Any, **columns: Any
    ) -> list[Any]:
        return [None, *(float(sum(ids) % 2) for ids in completion_ids[1:])]

    trainer.reward_funcs = [accuracy]
    trainer.model.train()
    batch = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    assert batch["advantages"].isfinite().all()
    answers = torch.tensor([r.segments[-1] for r in trainer._rollouts[:2]])
    assert (answers == 2).all()
    assert batch["advantages"][0].abs().sum() == 0


def test_reward_functions_see_the_rollouts_numbers(make: Make) -> None:
    trainer = make("elastic")
    seen: dict[str, list[int]] = {}

    def accuracy(
        prompts: list[Any], completions: list[Any], completion_ids: Any, **columns: Any
    ) -> list[float]:
        seen.update({n: columns[n] for n in ("budget", "thinking_tokens", "answer_tokens", "sampled_tokens")})
        return [0.0] * len(prompts)

    trainer.reward_funcs = [accuracy]
    trainer.model.train()
    trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    assert seen["budget"] == [4] * 8
    assert seen["thinking_tokens"] == [r.thinking_tokens for r in trainer._rollouts]
    assert seen["sampled_tokens"] == [sum(r.sampled) for r in trainer._rollouts]
    assert max(seen["answer_tokens"]) <= 8


def test_segments_index_their_advantages() -> None:
    segments, sampled = torch.tensor([[0, 1, 1, 2], [2, 0, 0, 0]]), torch.tensor([[1, 1, 0, 1], [1, 1, 0, 0]])
    table = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert per_token(table, segments, sampled).tolist() == [[1, 2, 0, 3], [6, 4, 0, 0]]
    assert per_token(table[:, 0], segments, sampled).tolist() == [[1, 1, 0, 1], [4, 4, 0, 0]]
    assert not per_token(torch.full((2, 3), torch.inf), segments, sampled)[sampled == 0].any()


@pytest.mark.parametrize(("name", "repeats"), [("grpo", 4), ("hbpo", 2)])
def test_engines_of_trl_get_the_opened_prompts(
    name: str, repeats: int, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(name)
    trainer.use_transformers_continuous_batching = True
    asked: list[Any] = []

    def engine(prompts: list[list[int]], images: None, fields: dict[str, Any], count: int) -> tuple[Any, Any]:
        asked.append((prompts, count))
        return [[40 + row, 4, 50, 2] for row in range(len(prompts))], [[-0.5] * 4 for _ in prompts]

    monkeypatch.setattr(trainer, "_generate_single_turn", engine)
    batch = generated(trainer)
    prompts, count = asked[0]
    assert count == repeats
    for start in range(0, len(prompts), repeats):
        assert prompts[start : start + repeats] == [prompts[start]] * repeats
    assert prompts[0] != prompts[repeats]
    assert batch["sampling_per_token_logps"].unique().tolist() == [-0.5]
    assert [r.thinking_tokens for r in trainer._rollouts] == [1] * 8
    assert (batch["tool_mask"] == 1).all()


@pytest.mark.parametrize("name", ["elastic", "brpo"])
def test_forced_tokens_of_vllm_have_no_advantage_and_no_correction(
    name: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replies of two tokens' thought to a budget of four, and of a close that is written there."""
    trainer = make(name)
    trainer.use_vllm, trainer._last_loaded_step = True, 0
    trainer.vllm_generation = SimpleNamespace(mode="colocate", generation_kwargs={})
    asked: list[dict[str, Any]] = []

    def engine(prompts: list[list[int]], images: None, fields: dict[str, Any], count: int) -> tuple[Any, Any]:
        asked.append(trainer.vllm_generation.generation_kwargs)
        rows = [
            [40 + row, 41, *([42, 43, 4] if row % 2 else [4]), 50 + row, 2] for row in range(len(prompts))
        ]
        if name == "brpo":
            rows = [
                [40, 41, 42, 43, 44, 45] if len(asked) == 1 else [50 + row, 2] for row in range(len(rows))
            ]
        return rows, [[-0.5] * len(row) for row in rows]

    monkeypatch.setattr(trainer, "_generate_single_turn", engine)
    batch = generated(trainer)
    inserted = batch["tool_mask"] == 0
    assert inserted.any()
    assert (batch["completion_ids"] == 4)[inserted].any()
    assert (batch["advantages"][inserted] == 0).all()
    assert (batch["advantages"][(batch["tool_mask"] == 1) & (batch["completion_mask"] == 1)] != 0).any()
    sampled = (batch["tool_mask"] == 1) & (batch["completion_mask"] == 1)
    assert batch["sampling_per_token_logps"][sampled].unique().tolist() == [-0.5]
    assert "importance_sampling_ratio" in batch
    if name == "elastic":
        assert asked == [{"max_tokens": 13, "extra_args": {"thinking_budget": 4}}]
        assert [r.close for r in trainer._rollouts] == ["natural", "forced"] * 4
        assert (inserted.sum(1) == torch.tensor([0, 1] * 4)).all()
    else:
        assert [settings["max_tokens"] for settings in asked] == [6, 8]


def test_vllm_is_made_with_budget_forcing_where_the_method_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from trl.generation import vllm_generation

    made: list[dict[str, Any]] = []
    monkeypatch.setattr(vllm_generation, "LLM", lambda **given: made.append(given), raising=False)
    with vllm_options({"logits_processors": ["one"]}):
        vllm_generation.LLM(model="m", seed=0)
    vllm_generation.LLM(model="m", seed=0)
    assert made == [{"model": "m", "seed": 0, "logits_processors": ["one"]}, {"model": "m", "seed": 0}]
