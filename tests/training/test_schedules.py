"""REX and UBA equal their formulas at every step, end at zero, and reach a trainer by name."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainingArguments

from budgetctl.errors import TrainingError
from budgetctl.training.schedules import (
    NamedSchedule,
    named_schedule,
    rate_share,
    rex,
    rex_schedule,
    uba,
    uba_schedule,
)

PEAK = 0.3


def optimizer() -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)


def rates(schedule: LambdaLR, steps: int) -> list[float]:
    """Learning rate at steps 0 to ``steps``."""
    found = [schedule.get_last_lr()[0]]
    for _ in range(steps):
        schedule.optimizer.step()
        schedule.step()
        found.append(schedule.get_last_lr()[0])
    return found


@pytest.mark.parametrize("warmup", [0, 7])
def test_rex_equals_its_formula_at_every_step(warmup: int) -> None:
    total = 50
    found = rates(rex_schedule(optimizer(), total, warmup), total)
    for step, rate in enumerate(found):
        left = 1 - (step - warmup) / (total - warmup)
        expected = step / warmup if step < warmup else left / (1 / 2 + 1 / 2 * left)
        assert rate == pytest.approx(PEAK * expected, abs=1e-15), step
    assert found[-1] == 0


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize("phi", [0.25, 1.0, 5.0])
def test_uba_equals_its_formula_at_every_step(warmup: int, phi: float) -> None:
    total = 50
    found = rates(uba_schedule(optimizer(), total, warmup, phi), total)
    for step, rate in enumerate(found):
        cosine = math.cos(math.pi * (step - warmup) / (total - warmup))
        expected = step / warmup if step < warmup else 2 * (1 + cosine) / (2 * phi + (2 - phi) * (1 + cosine))
        assert rate == pytest.approx(PEAK * expected, abs=1e-15), step
    assert found[-1] == 0


def test_known_values() -> None:
    quarters = [0, 0.25, 0.5, 0.75, 1]
    assert [round(rex(p), 3) for p in quarters] == [1, 0.857, 0.667, 0.4, 0]
    assert [round(rex(p, 0.9), 3) for p in quarters] == [1, 0.968, 0.909, 0.769, 0]
    assert [round(uba(p, 0.5), 3) for p in quarters] == [1, 0.959, 0.8, 0.407, 0]
    assert [round(uba(p, 5), 3) for p in quarters] == [1, 0.7, 0.286, 0.064, 0]


@given(st.floats(0, 1))
def test_special_cases(progress: float) -> None:
    assert rex(progress, 0) == pytest.approx(1 - progress)
    assert uba(progress, 2) == pytest.approx((1 + math.cos(math.pi * progress)) / 2)


@given(
    st.sampled_from([rex, uba]),
    st.integers(1, 300),
    st.integers(0, 299),
    st.sampled_from([0.0, 0.1]),
    st.data(),
)
def test_rises_then_falls_to_the_floor(shape, total: int, warmup: int, floor: float, data) -> None:
    warmup = min(warmup, total - 1)
    options = {"shape": shape, "warmup_steps": warmup, "total_steps": total, "floor": floor}
    shares = [rate_share(step, **options) for step in range(total + 3)]
    assert shares[: warmup + 1] == sorted(shares[: warmup + 1])
    assert shares[warmup] == pytest.approx(1)
    assert shares[warmup:] == sorted(shares[warmup:], reverse=True)
    assert shares[total:] == [floor] * 3


def test_a_resumed_schedule_goes_on_with_its_own_settings() -> None:
    whole = rates(rex_schedule(optimizer(), 20, 3), 20)
    first = rex_schedule(optimizer(), 20, 3)
    rates(first, 8)
    second = rex_schedule(optimizer(), 20, 3)
    second.load_state_dict(first.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    assert rates(second, 12) == pytest.approx(whole[8:])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rx", {}, "expected one of rex, uba"),
        ("rex", {"d": 1.0}, "d=1.0 of rex"),
        ("uba", {"phi": 0.0}, "expected a value above 0"),
        ("uba", {"d": 0.5}, "expected 'phi'"),
        ("rex", {"warmup_steps": 10}, "expected fewer than all"),
        ("rex", {"floor": 2.0}, "0 to 1"),
    ],
)
def test_mistakes_are_named(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        named_schedule(name, optimizer(), **{"total_steps": 10, **options})


class Line(torch.nn.Module):
    """y = w x, with the loss that a trainer asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.linear(x) - labels).square().mean()}


class ScheduledTrainer(NamedSchedule, Trainer):
    """A plain trainer with named schedules."""


def train(out: Path, name: str | None, **options: object) -> list[float]:
    data = Dataset.from_dict({"x": [[1.0], [2.0]] * 4, "labels": [[2.0], [4.0]] * 4})
    arguments = TrainingArguments(
        out,
        max_steps=8,
        per_device_train_batch_size=1,
        learning_rate=0.1,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        **options,
    )
    trainer = ScheduledTrainer(Line(), arguments, train_dataset=data.with_format("torch"))
    trainer.use_schedule(name)
    trainer.train()
    return [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]


def test_a_trainer_takes_the_schedule_by_name(tmp_path: Path) -> None:
    found = train(tmp_path, "uba", warmup_steps=2, lr_scheduler_kwargs={"phi": 5.0})
    expected = [0, 0.05] + [0.1 * uba(step / 6, 5) for step in range(6)]
    assert found == pytest.approx(expected)


def test_without_a_name_the_trainer_keeps_its_own(tmp_path: Path) -> None:
    assert train(tmp_path, None) == pytest.approx([0.1 * (1 - step / 8) for step in range(8)])
    with pytest.raises(TrainingError, match="cosine"):
        train(tmp_path, "cosine")
