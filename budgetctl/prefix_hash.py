"""A 64-bit hash of each row's token prefix: the key under which derived values are kept and checked."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch

Integers = TypeVar("Integers", torch.Tensor, np.ndarray[Any, Any])

_ODD = (-7046029254386353131, -4658895280553007687, -7723592293110705685)  # splitmix64's constants as int64


def mix(values: Integers) -> Integers:
    """A bijective scramble of int64 values (the finaliser of splitmix64, in wrapping arithmetic)."""
    values = values * _ODD[0]
    values = (values ^ ((values >> 30) & (2**34 - 1))) * _ODD[1]
    values = (values ^ ((values >> 27) & (2**37 - 1))) * _ODD[2]
    return values ^ ((values >> 31) & (2**33 - 1))


def prefix_totals(input_ids: torch.Tensor) -> torch.Tensor:
    """Running totals [B, T] int64 of the tokens [B, T]; the hash of a prefix is a function of its total and its
    length, so that it can be carried on token by token."""
    columns = torch.arange(1, 1 + input_ids.shape[1], device=input_ids.device)
    return mix(mix(columns)[None, :] ^ input_ids).cumsum(1)


def hash_of(totals: torch.Tensor, lengths: torch.Tensor | int) -> torch.Tensor:
    """The hash of prefixes by total and length (shapes that broadcast); never 0."""
    hashed = mix(totals ^ lengths)
    return torch.where(hashed == 0, 1, hashed)


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
