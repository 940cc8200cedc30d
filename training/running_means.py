"""Running means over the rollouts of each question, that go into checkpoints."""

from __future__ import annotations

from typing import Any

from budgetctl.errors import TrainingError


class RunningMeans:
    """Mean of a number (a length, a score) for each question, recent ones counting most.

    The plain mean of the first ``memory`` values, from then on an exponential one of weight 1 / ``memory``, because the
    policy moves.

    Args:
        memory: rollouts; None for a plain mean for ever.
    """

    def __init__(self, memory: int | None = 64) -> None:
        if memory is not None and memory < 1:
            raise TrainingError(f"memory={memory}: expected at least 1 rollout, or None for all; correct it")
        self.memory = memory
        self._seen: dict[str, tuple[int, float]] = {}

    def add(self, question: str, value: float) -> None:
        """Take in one value."""
        count, mean = self._seen.get(question, (0, 0.0))
        count += 1
        weight = count if self.memory is None else min(count, self.memory)
        self._seen[question] = (count, mean + (value - mean) / weight)

    def get(self, question: str) -> float | None:
        """The mean, None before the first value."""
        return self._seen[question][1] if question in self._seen else None

    def state_dict(self) -> dict[str, Any]:
        """The state as JSON values."""
        return {question: [count, mean] for question, (count, mean) in self._seen.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self._seen = {question: (int(count), float(mean)) for question, (count, mean) in state.items()}
