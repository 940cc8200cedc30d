"""Per-request memory of the controller: predicted lengths and how each close came about, keyed by prefix hash.

Both are caches of values that are functions of (prefix, logits): an entry is used only where its key matches, and
what is missing is derived again. So calls may go backwards, rows may permute, and a step may be asked twice.
Everything stays on the device until a report is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

_SLOTS = 1 << 16
#: Kinds of a close that the model did not want: not written by the controller, at a limit, at an early exit.
WRITTEN = ("steered", "forced", "early")


class Predictions:
    """What keeps predicted lengths, by prefix, slot or request: ``store`` and ``lookup`` as :class:`PredictionTable`."""

    def all_of(self, keys: torch.Tensor) -> torch.Tensor | None:
        """[B] values, where the host knows at once that there is one for each of ``keys`` [B]; None otherwise."""
        return None


class PredictionTable(Predictions):
    """Predicted natural thinking length by prefix hash: a direct-mapped table on the device."""

    def __init__(self) -> None:
        self._keys: torch.Tensor | None = None
        self._values: torch.Tensor | None = None

    def store(self, keys: torch.Tensor, values: torch.Tensor, where: torch.Tensor) -> None:
        """Keep ``values`` [B] under ``keys`` [B] int64 for the rows of ``where`` [B] bool."""
        if self._keys is None or self._values is None or self._keys.device != keys.device:
            # The last slot takes the writes of rows that store nothing.
            self._keys = torch.zeros(_SLOTS + 1, dtype=torch.int64, device=keys.device)
            self._values = torch.zeros(_SLOTS + 1, dtype=values.dtype, device=keys.device)
        slots = torch.where(where, keys & (_SLOTS - 1), _SLOTS)
        self._keys[slots] = torch.where(where, keys, 0)
        self._values[slots] = values

    def lookup(self, keys: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
        """[B] stored values; ``otherwise`` [B] where there is none. ``keys`` [B] may be on another device (reports)."""
        if self._keys is None or self._values is None:
            return otherwise
        at = keys.to(self._keys.device)
        slots = at & (_SLOTS - 1)
        found, values = self._keys[slots] == at, self._values[slots]
        return torch.where(found.to(otherwise.device), values.to(otherwise), otherwise)


@dataclass
class CloseLog:
    """For each guided step and row: prefix hash, the close's probability before and after, and what was done."""

    _steps: list[tuple[torch.Tensor, ...]] = field(default_factory=list)

    def record(
        self,
        keys: torch.Tensor,
        before: torch.Tensor,
        after: torch.Tensor,
        preferred: torch.Tensor,
        forced: torch.Tensor,
        exited: torch.Tensor | None = None,
    ) -> None:
        """Tensors [B]: the close's probability before and after guidance, whether it was the most likely token before
        guidance, whether the step was forced, and whether it was by an early exit."""
        written = forced.to(torch.int8) if exited is None else forced.to(torch.int8) + exited
        self._steps.append((keys, before.float(), after.float(), preferred, written))

    def kinds(self, greedy: bool) -> dict[int, str]:
        """``natural``, ``steered``, ``forced`` or ``early`` by prefix hash, should the close begin there (one host sync).

        Natural if the model itself wanted to close. Greedy decoding: the close was the most likely token before
        guidance. Sampled: guidance at most doubled its probability (to 1 where it was forced), so that the model's
        own wish is the larger part.
        """
        if not self._steps:
            return {}
        keys, before, after, preferred, written = (
            torch.cat(column) for column in zip(*self._steps, strict=True)
        )
        natural = preferred if greedy else before >= 0.5 * torch.where(written > 0, 1.0, after)
        rows = zip(keys.tolist(), natural.tolist(), written.tolist(), strict=True)
        return {key: "natural" if own else WRITTEN[how] for key, own, how in rows}
