"""The rows of one step that have a limit, as the controller takes them."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class StepRows:
    """B rows of a step; tensors are on the device of the logits.

    Args:
        index: [B] int64, which rows of the logits they are; None for all of them in order.
        input_ids: [B, T] int64 prefixes, left-padded.
        lengths: [B] int64, tokens of each prefix.
        prompts: [B] int64, tokens of each prompt.
        slots: [B] int64.
        known: all slots that may be among them, on the host.
    """

    index: torch.Tensor | None
    input_ids: torch.Tensor
    lengths: torch.Tensor
    prompts: torch.Tensor
    slots: torch.Tensor
    known: list[int]
