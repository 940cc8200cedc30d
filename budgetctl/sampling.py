"""Seeded sampling by row: the same tokens for a row alone and in a batch, and for two methods from the same noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor

from budgetctl.checks import check_temperature, shown
from budgetctl.errors import BudgetError
from budgetctl.on_device import to_device
from budgetctl.prefix_hash import mix


class SeededSampler(LogitsProcessor):
    """Samples by the Gumbel-max trick from noise that depends on (row seed, position, token) alone.

    Used last, with greedy decoding (``do_sample=False``): the most likely token of the returned logits is then a
    sample from softmax(logits / temperature). A draw does not depend on the other rows, so a prompt gets the same
    thought alone and in a batch, and two methods run with one seed share their randomness.

    Args:
        seeds: one integer a row.
        prompt_length: padded width of the prompt in tokens; position 0 is the first new token.
        temperature: > 0.
        offsets: tokens of each row's prompt that were generated before, so that the noise goes on from there; None for none.

    Raises:
        BudgetError: for a temperature or a seed out of range, or not one offset a seed.
    """

    supports_continuous_batching = False

    def __init__(
        self,
        seeds: Sequence[int],
        prompt_length: int,
        temperature: float = 1.0,
        offsets: Sequence[int] | None = None,
    ) -> None:
        self.temperature = check_temperature(temperature)
        given = list(seeds)
        for seed in given:
            if not -(2**63) <= seed < 2**63:
                raise BudgetError(
                    f"seed={shown(seed)} is out of range: expected an integer of int64; take a smaller one"
                )
        self.seeds = torch.tensor(given, dtype=torch.int64)
        self.prompt_length = prompt_length
        before = [0] * len(given) if offsets is None else list(offsets)
        if len(before) != len(given):
            raise BudgetError(
                f"{len(before)} offsets for {len(given)} seeds: expected one a row; give as many"
            )
        self.offsets = torch.tensor(before, dtype=torch.int64)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] plus Gumbel noise, for prefixes [B, T]."""
        if len(self.seeds) != scores.shape[0]:
            raise BudgetError(f"{len(self.seeds)} seeds for {scores.shape[0]} rows: expected one a row")
        if self.seeds.device != scores.device:
            self.seeds, self.offsets = (to_device(part, scores.device) for part in (self.seeds, self.offsets))
        seeds = mix(self.seeds)
        position = input_ids.shape[1] - self.prompt_length + self.offsets
        tokens = torch.arange(scores.shape[1], device=scores.device)
        bits = mix(mix(seeds + position)[:, None] ^ tokens[None, :])
        # 52 random bits and a half make a uniform double strictly between 0 and 1.
        uniform = (((bits >> 12) & (2**52 - 1)).double() + 0.5) / 2**52
        noise = -(-uniform.log()).log()
        return scores / self.temperature + noise.to(scores.dtype)
