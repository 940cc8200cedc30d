"""State of our own inside a trainer's checkpoints: it is saved with the trainer's, and comes back when a run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from budgetctl.errors import TrainingError


class Stateful(Protocol):
    """What has a state as JSON values."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class CheckpointedState(TrainerCallback, ExportableState):
    """Keeps named states in ``trainer_state.json``; add it to the trainer's callbacks.

    Written in the same file as the trainer's step, so that no checkpoint has the one without the other. The states
    have to be the same on every process: the main process's is saved, all processes load it.

    Args:
        states: name -> what has the state.
    """

    def __init__(self, states: Mapping[str, Stateful]) -> None:
        self.states = dict(states)

    def state(self) -> dict[str, Any]:
        """What the trainer saves."""
        return {"args": {}, "attributes": {name: each.state_dict() for name, each in self.states.items()}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the states where the run goes on from a checkpoint.

        Raises:
            TrainingError: the checkpoint does not have them.
        """
        if state.global_step == 0:
            return
        saved = state.stateful_callbacks.get(type(self).__name__, {})
        for name, each in self.states.items():
            if name not in saved.get("attributes", {}):
                raise TrainingError(
                    f"the checkpoint of step {state.global_step} has no state {name!r}: expected one written by the same "
                    "script; start again, or resume another checkpoint"
                )
            each.load_state_dict(saved["attributes"][name])
