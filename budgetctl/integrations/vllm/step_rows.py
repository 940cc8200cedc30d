"""The rows of one step that have a limit, as the controller takes them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from budgetctl.prefix_reader import Reading


@dataclass(frozen=True)
class StepRows:
    """B rows of a step; tensors are on the device of the logits.

    Args:
        index: [B] int64, which rows of the logits they are; None for all of them in order.
        input_ids: [B, T] int64, the last tokens of the rows: as many as markers, fences and boundaries need where the
            ``reading`` is given, all of them otherwise; left-padded.
        slots: [B] int64.
        known: all slots that may be among them, on the host.
        reading: of the rows, None where it is still to be made.
        lengths: [B] int64, tokens of each prefix.
        prompts: [B] int64, tokens of each prompt; None with a reading.
    """

    index: torch.Tensor | None
    input_ids: torch.Tensor
    slots: torch.Tensor
    known: list[int]
    reading: Reading | None = None
    lengths: torch.Tensor | None = None
    prompts: torch.Tensor | None = None
