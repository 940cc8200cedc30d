"""Knapsack RL in a trainer: pass rates by question, a sampler that repeats prompts by their worth, uneven groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from budgetctl.errors import TrainingError
from budgetctl.training.knapsack import HIGH, LOW, allocate
from budgetctl.training.running_means import RunningMeans


class PassRates:
    """Pass rate of each question over its latest rollouts, as it stood before a given generation batch.

    Data loaders read a batch ahead, or not, by their settings, and a resumed run reads again. So that all of them see
    the same rates, those for batch ``b`` hold the results of batches up to ``b - 2``, whatever has come in by then.

    Args:
        memory: rollouts of a question that count (:class:`RunningMeans`).
    """

    def __init__(self, memory: int | None = 64) -> None:
        self.means = RunningMeans(memory)
        self._waiting: list[tuple[int, list[tuple[str, float]]]] = []

    def record(self, batch: int, questions: Sequence[str], passed: Sequence[float]) -> None:
        """Take in the rollouts of one generation batch, of all processes: 1 for a right one, 0 for a wrong one."""
        self._waiting.append((batch, list(zip(questions, map(float, passed), strict=True))))

    def before(self, batch: int, questions: Sequence[str]) -> list[float | None]:
        """Rates of some questions as batch ``batch`` is to see them; to be asked in the order of the batches."""
        while self._waiting and self._waiting[0][0] <= batch - 2:
            for question, passed in self._waiting.pop(0)[1]:
                self.means.add(question, passed)
        return [self.means.get(question) for question in questions]

    def state_dict(self) -> dict[str, Any]:
        """The state as JSON values."""
        return {
            "means": self.means.state_dict(),
            "waiting": [[batch, [list(row) for row in rows]] for batch, rows in self._waiting],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.means.load_state_dict(state["means"])
        self._waiting = [
            (int(batch), [(str(question), float(passed)) for question, passed in rows])
            for batch, rows in state["waiting"]
        ]


class KnapsackSampler(Sampler[int]):
    """Indices of a dataset, those of a generation batch repeated by :func:`allocate`, each prompt's together.

    Every batch has the same number of prompts and of rollouts, so that steps, processes and schedules are as with equal
    groups. Takes the place of TRL's ``RepeatSampler``.

    Args:
        questions: question id of each row of the dataset; a question may stand in several rows.
        rates: pass rates, the same on all processes.
        prompts: prompts of a generation batch.
        rollouts: rollouts of a generation batch over all processes.
        repeats: times that a batch is given (steps that use it times iterations).
        low: least rollouts of a prompt.
        high: most rollouts of a prompt.
        shuffle: draw the order of the prompts anew in each epoch.
        seed: of the order.

    Raises:
        TrainingError: fewer rows than prompts of a batch, or bounds that no allocation keeps.
    """

    def __init__(
        self,
        questions: Sequence[str],
        rates: PassRates,
        *,
        prompts: int,
        rollouts: int,
        repeats: int = 1,
        low: int = LOW,
        high: int = HIGH,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        if len(questions) < prompts:
            raise TrainingError(
                f"{len(questions)} rows for batches of {prompts} prompts: expected at least one batch; use more data or "
                "a smaller batch"
            )
        allocate([None] * prompts, rollouts, low, high)  # impossible bounds stop here
        self.questions = list(questions)
        self.rates = rates
        self.prompts, self.rollouts, self.repeats = prompts, rollouts, repeats
        self.low, self.high = low, high
        self.shuffle, self.seed, self.epoch = shuffle, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch that is to be drawn next; without a call they follow one another."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self._draw(epoch)

    def _draw(self, epoch: int) -> Iterator[int]:
        order = list(range(len(self.questions)))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            order = torch.randperm(len(order), generator=generator).tolist()
        batches = len(order) // self.prompts
        for number in range(batches):
            rows = order[number * self.prompts : (number + 1) * self.prompts]
            known = self.rates.before(epoch * batches + number, [self.questions[row] for row in rows])
            counts = allocate(known, self.rollouts, self.low, self.high)
            repeated = [row for row, count in zip(rows, counts, strict=True) for _ in range(count)]
            for _ in range(self.repeats):
                yield from repeated

    def __len__(self) -> int:
        return len(self.questions) // self.prompts * self.rollouts * self.repeats


def group_advantages(
    rewards: torch.Tensor, groups: Sequence[range], scale: str = "group", epsilon: float = 1e-4
) -> torch.Tensor:
    """GRPO's advantages for groups of any sizes: reward less the group's mean, over its standard deviation.

    Args:
        rewards: [N] of all processes; NaN for a rollout that could not be scored, which gets 0 and counts nowhere.
        groups: rows of each prompt.
        scale: as TRL's ``scale_rewards``: ``group``, ``batch`` (one deviation for all rows) or ``none``.
        epsilon: added to the deviation.

    Returns:
        [N] advantages, of the dtype of ``rewards``.
    """
    advantages = torch.zeros_like(rewards)
    for group in groups:
        rows = slice(group.start, group.stop)
        scored = rewards[rows][~rewards[rows].isnan()]
        if scored.numel() == 0:
            continue
        centred = rewards[rows] - scored.mean()
        if scale == "group":
            deviation = scored.std() if scored.numel() > 1 else scored.new_zeros(())
            centred = centred / (deviation + epsilon)
        advantages[rows] = centred
    if scale == "batch":
        scored = rewards[~rewards.isnan()]
        deviation = scored.std() if scored.numel() > 1 else scored.new_zeros(())
        advantages = advantages / (deviation + epsilon)
    return advantages.nan_to_num(0.0)
