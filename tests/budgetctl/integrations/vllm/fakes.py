"""vLLM's interfaces of logits processors as they are in release 0.32, without vLLM."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from budgetctl.closing import Boundaries
from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.forecast import LengthForecast
from budgetctl.integrations.vllm.processor import BudgetProcessor
from budgetctl.integrations.vllm.served_model import ServedModel

#: Most tokens of prompt and generation.
CONTEXT = 4096


class Direction(Enum):
    """``MoveDirectionality``."""

    UNIDIRECTIONAL = auto()
    SWAP = auto()


@dataclass
class Update:
    """``BatchUpdate``."""

    batch_size: int
    removed: list[int] = field(default_factory=list)
    added: list[tuple[int, Any, list[int] | None, list[int]]] = field(default_factory=list)
    moved: list[tuple[int, int, Direction]] = field(default_factory=list)


def sampling(max_tokens: int | None = None, temperature: float = 1.0, **extra_args: Any) -> Any:
    """``SamplingParams``, as far as they are read."""
    given = {name: value for name, value in extra_args.items() if value is not None}
    return SimpleNamespace(extra_args=given or None, max_tokens=max_tokens, temperature=temperature)


def processor_for(
    delimiters: ThinkingDelimiters,
    boundaries: Boundaries,
    forecast: LengthForecast | None,
    states: Any = None,
) -> BudgetProcessor:
    """A processor of a model with these markers, of the second runner where ``states`` are given."""
    served = ServedModel(delimiters, boundaries, forecast, None, CONTEXT)

    class Processor(BudgetProcessor):
        def read_model(self, vllm_config: Any) -> ServedModel:
            return served

    return Processor(None, torch.device("cpu") if states is None else states, False)


class States:
    """``LogitsProcRequestState``."""

    def __init__(self, slots: int, width: int, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.max_num_reqs = slots
        filled = torch.full((slots, width), 3, dtype=torch.int32, device=device)
        self.all_token_ids = SimpleNamespace(gpu=filled)
        self.total_len = SimpleNamespace(gpu=torch.zeros(slots, dtype=torch.int32, device=device))
        lengths = np.zeros(slots, dtype=np.int32)
        # On the CPU the two are one memory; elsewhere a test copies what it has written.
        self.prompt_len = SimpleNamespace(np=lengths, gpu=torch.from_numpy(lengths).to(device))

    def write(self, slot: int, tokens: list[int]) -> None:
        """The committed tokens of a request; what stood there before stays behind them."""
        self.all_token_ids.gpu[slot, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
        self.total_len.gpu[slot] = len(tokens)


def context_of(states: States, rows: list[tuple[int, list[int], list[int]]]) -> Any:
    """``LogitsContext`` of a batch: slot, committed tokens and drafts of each request, one row a token that is to be
    sampled. Drafts stand in the ids that are fed to the model, after the last committed token."""
    mapping, fed, local, positions, bounds = [], [], [], [], []
    for slot, tokens, drafts in rows:
        for at, token in enumerate([tokens[-1], *drafts]):
            mapping.append(slot)
            fed.append(token)
            local.append(at)
            positions.append(len(tokens) - 1 + at)
        bounds.append(len(tokens) + len(drafts))
    slots = [slot for slot, _, _ in rows]
    device = states.device
    return SimpleNamespace(
        expanded_idx_mapping=torch.tensor(mapping, dtype=torch.int32, device=device),
        idx_mapping=torch.tensor(slots, dtype=torch.int32, device=device),
        idx_mapping_np=np.array(slots, dtype=np.int32),
        expanded_local_pos=torch.tensor(local, dtype=torch.int32, device=device),
        input_ids=torch.tensor(fed, dtype=torch.int32, device=device),
        pos=torch.tensor(positions, device=device),
        seq_lens_upper_bound_np=np.array(bounds, dtype=np.int32),
    )
