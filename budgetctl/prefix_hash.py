"""A 64-bit hash of each row's token prefix: the key under which derived values are kept and checked."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch

Integers = TypeVar("Integers", torch.Tensor, np.ndarray[Any, Any])

_ODD = (-7046029254386353131, -4658895280553007687, -7723592293110705685)  # splitmix64's constants as int64

#: The sign bit, which all hashes have.
NEVER_0 = -(2**63)


def mix(values: Integers) -> Integers:
    """A bijective scramble of int64 values (the finaliser of splitmix64, in wrapping arithmetic)."""
    values = values * _ODD[0]
    values = (values ^ ((values >> 30) & (2**34 - 1))) * _ODD[1]
    values = (values ^ ((values >> 27) & (2**37 - 1))) * _ODD[2]
    return values ^ ((values >> 31) & (2**33 - 1))


#: Of each device, as many columns as were asked for, mixed.
_MIXED: dict[torch.device, torch.Tensor] = {}


def prefix_totals(input_ids: torch.Tensor) -> torch.Tensor:
    """Running totals [B, T] int64 of the tokens [B, T]; the hash of a prefix is a function of its total and its
    length, so that it can be carried on token by token."""
    return mix(_mixed_columns(input_ids.shape[1], input_ids.device) ^ input_ids).cumsum(1)


def _mixed_columns(width: int, device: torch.device) -> torch.Tensor:
    """``mix`` of 1 to ``width``, [T]; nobody may write to it."""
    if torch.compiler.is_compiling():
        return mix(torch.arange(1, width + 1, device=device))
    known = _MIXED.get(device)
    if known is None or len(known) < width:
        with torch.inference_mode(False):
            known = _MIXED[device] = mix(torch.arange(1, 2 * width + 1024, device=device))
    return known[:width]


def hash_of(totals: torch.Tensor, lengths: torch.Tensor | int) -> torch.Tensor:
    """The hash of prefixes by total and length (shapes that broadcast); never 0."""
    # Totals are sums of scrambled numbers already.
    return (totals ^ lengths) | NEVER_0


def hash_prefixes(input_ids: torch.Tensor) -> torch.Tensor:
    """Hashes of all prefixes of each row: [B, T + 1] int64 for ids [B, T]; column n is the prefix of n tokens."""
    columns = torch.arange(input_ids.shape[1] + 1, device=input_ids.device)
    return hash_of(torch.nn.functional.pad(prefix_totals(input_ids), (1, 0)), columns)


def hash_prefix(input_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Hash of the first ``lengths[b]`` columns of each row, [B] int64, never 0.

    Args:
        input_ids: [B, T] int64.
        lengths: [B] int64, each in 0..T.
    """
    return hash_prefixes(input_ids).gather(1, lengths[:, None]).squeeze(1)
