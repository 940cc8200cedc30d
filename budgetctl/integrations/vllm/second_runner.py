"""vLLM's second model runner: request slots, whose tokens are on the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from budgetctl.integrations.vllm.step_rows import StepRows
from budgetctl.on_device import to_device


def rows_of(states: Any, context: Any, asked: np.ndarray, rows: int) -> StepRows | None:
    """The rows with a limit; None when there is none. Nothing is read back from the device.

    With drafts a request has several rows, and which they are is not known on the host: then all rows are taken.

    Args:
        states: vLLM's ``LogitsProcRequestState``.
        context: its ``LogitsContext`` of the step.
        asked: [S] bool, slots whose request has a limit.
        rows: of the logits.
    """
    batch = context.idx_mapping_np
    wanted = asked[batch]
    if not wanted.any():
        return None
    index, bounds = None, context.seq_lens_upper_bound_np
    if rows == len(batch) and not wanted.all():
        bounds = bounds[wanted]
        index = to_device(torch.from_numpy(np.nonzero(wanted)[0]), states.device)
    slots, lengths = context.expanded_idx_mapping.to(torch.int64), context.pos.to(torch.int64) + 1
    local = context.expanded_local_pos.to(torch.int64)
    first = torch.arange(rows, device=slots.device) - local
    if index is not None:
        slots, lengths, first = slots[index], lengths[index], first[index]
    width = int(bounds.max())
    input_ids = prefixes(states, context.input_ids, slots, lengths, first, width)
    prompts = states.prompt_len.gpu[slots].to(torch.int64)
    return StepRows(index, input_ids, slots, batch.tolist(), lengths=lengths, prompts=prompts)


def prefixes(
    states: Any,
    fed: torch.Tensor,
    slots: torch.Tensor,
    lengths: torch.Tensor,
    first: torch.Tensor,
    width: int,
) -> torch.Tensor:
    """Prefixes of ``lengths`` [B], left-padded with 0 to [B, ``width``] int64: tokens that a request has, and drafts of
    this step, which stand in the rows after the request's ``first`` [B] alone."""
    at = torch.arange(width, device=slots.device) - (width - lengths)[:, None]
    committed = states.total_len.gpu[slots].to(torch.int64)[:, None]
    tokens = states.all_token_ids.gpu[slots[:, None], at.clamp(min=0)].to(torch.int64)
    draft = (first[:, None] + at - committed + 1).clamp(0, len(fed) - 1)
    tokens = torch.where(at >= committed, fed[draft].to(torch.int64), tokens)
    return torch.where(at >= 0, tokens, 0)
