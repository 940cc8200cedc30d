"""The dataset columns that rewards read, and rows that are spread over processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from budgetctl.errors import TrainingError


class Reward(Protocol):
    """A reward function as TRL calls it, that says which columns of the dataset it needs."""

    __name__: str
    columns: tuple[str, ...]

    def __call__(
        self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **columns: Any
    ) -> list[float | None]:
        """One reward a completion; None where there is nothing to score it by."""
        ...


def column(columns: Mapping[str, Any], name: str, reward: str) -> list[Any]:
    """Values of one column, one a completion.

    Raises:
        TrainingError: the dataset does not have it.
    """
    if name not in columns:
        raise TrainingError(missing(reward, name, columns))
    return list(columns[name])


def require_columns(dataset_columns: Sequence[str], rewards: Iterable[Any]) -> None:
    """Check, before a model is loaded, that a dataset has the columns its rewards read.

    Args:
        dataset_columns: names of the dataset's columns.
        rewards: reward functions; those without a ``columns`` attribute are taken as they are.

    Raises:
        TrainingError: naming the first column that is missing.
    """
    for reward in rewards:
        for name in getattr(reward, "columns", ()):
            if name not in dataset_columns:
                raise TrainingError(missing(reward.__name__, name, dataset_columns))


def missing(reward: str, name: str, there: Iterable[str]) -> str:
    """The line that says so."""
    known = (
        ", ".join(sorted(n for n in there if n not in ("trainer_state", "log_extra", "log_metric"))) or "none"
    )
    return (
        f"reward {reward} needs a column {name!r} and the dataset has {known}: expected one value a row; make the data "
        "set with budgetctl.training.tasks, or rename the column"
    )


def gather_rows(rows: list[Any]) -> tuple[list[Any], int]:
    """The rows of all processes, in the order of the processes, and where this process's begin.

    Every process has to call it, each with the same number of rows, as TRL's generation batches are.
    """
    from accelerate import PartialState
    from accelerate.utils import gather_object

    state = PartialState()
    return list(gather_object(list(rows))), state.process_index * len(rows)


def consecutive_groups(keys: Sequence[Any]) -> list[range]:
    """Runs of equal neighbouring keys, as ranges of indices: the rollouts of one prompt stand together."""
    groups: list[range] = []
    for index, key in enumerate(keys):
        if groups and keys[groups[-1].start] == key:
            groups[-1] = range(groups[-1].start, index + 1)
        else:
            groups.append(range(index, index + 1))
    return groups
