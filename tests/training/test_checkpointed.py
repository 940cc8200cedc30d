"""A reward's state is in the trainer's checkpoints and comes back with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from budgetctl.errors import TrainingError
from budgetctl.training.checkpointed import CheckpointedState
from budgetctl.training.running_means import RunningMeans


class Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.linear(x) - labels).square().mean()}


class TakesLengths(TrainerCallback):
    """As a reward would: a length a step."""

    def __init__(self, means: RunningMeans) -> None:
        self.means = means

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.means.add("q", 10.0 * state.global_step)


def run(out: Path, steps: int, *, resume: bool = False, names: tuple[str, ...] = ("effort",)) -> RunningMeans:
    data = Dataset.from_dict({"x": [[1.0]] * 8, "labels": [[2.0]] * 8}).with_format("torch")
    arguments = TrainingArguments(
        out,
        max_steps=steps,
        per_device_train_batch_size=1,
        save_steps=2,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    means = RunningMeans(2)
    callbacks = [TakesLengths(means)]
    if names:
        callbacks.append(CheckpointedState(dict.fromkeys(names, means)))
    trainer = Trainer(Line(), arguments, train_dataset=data, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return means


def test_the_state_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", 6)
    run(tmp_path / "cut", 2)
    resumed = run(tmp_path / "cut", 6, resume=True)
    assert resumed.state_dict() == whole.state_dict()
    assert resumed.state_dict()["q"][0] == 6


def test_a_checkpoint_without_the_state_is_refused(tmp_path: Path) -> None:
    run(tmp_path, 2, names=())
    with pytest.raises(TrainingError, match="the checkpoint of step 2 has no state 'effort'"):
        run(tmp_path, 4, resume=True)
