"""Several processes of one run, as ``accelerate launch`` or ``torchrun`` starts them: each answers its share."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
#: One process may be done long before another.
_PATIENCE = datetime.timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Args:
        rank: its number.
        count: of all.
        local_rank: its number on this machine, and so that of its GPU.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def here(cls) -> Processes:
        """As the launcher's environment says (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``); alone without one."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls()
        from torch import distributed

        # The processes only wait for each other, which gloo does on any machine.
        if not distributed.is_initialized():
            distributed.init_process_group("gloo", timeout=_PATIENCE)
        rank = distributed.get_rank()
        return cls(rank, distributed.get_world_size(), int(os.environ.get("LOCAL_RANK", rank)))

    @property
    def main(self) -> bool:
        """Whether this one keeps the directory."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            from torch import distributed

            distributed.barrier()

    def share(self, batches: Sequence[T]) -> list[T]:
        """Those of this process: every ``count``-th, so that each gets some of every method."""
        return list(batches[self.rank :: self.count])
