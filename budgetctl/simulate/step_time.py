"""How long a step of the engine takes, and what it has room for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from budgetctl.errors import BudgetctlError


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step: ``base + row·rows + kv_token·KV tokens read``, and where prompts are read in it,
    ``prefill_base + prefill_token·prompt tokens`` on top.

    Raises:
        BudgetctlError: for a value that is negative or no number, or where a step would take no time at all.
    """

    base: float
    row: float = 0.0
    kv_token: float = 0.0
    prefill_base: float = 0.0
    prefill_token: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise BudgetctlError(
                    f"step time {name}={value!r}: expected seconds, at least 0; correct the value"
                )
        if not self.base + self.row > 0:
            raise BudgetctlError(
                "a step of no time: expected base or row above 0; give the seconds of a step"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> StepTime:
        """From JSON values.

        Raises:
            BudgetctlError: for a name that is unknown, a missing ``base`` or a wrong value.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise BudgetctlError(
                    f"step time {name!r} is unknown: expected some of {', '.join(known)}; drop it"
                )
        if "base" not in values:
            raise BudgetctlError("a step time without base: expected the seconds of an empty step; give base")
        return cls(**values)  # type: ignore[arg-type]

    @classmethod
    def roofline(
        cls,
        *,
        parameters: float,
        kv_bytes: float,
        bandwidth: float,
        flops: float,
        efficiency: float = 0.6,
        overhead: float = 1e-3,
        parameter_bytes: float = 2.0,
    ) -> StepTime:
        """What the hardware allows: weights and KV read once a step, two operations a parameter and token.

        An estimate before anything can be measured; a fit to a real engine replaces it.

        Args:
            parameters: of the model, those that are active for a token.
            kv_bytes: keys and values of one token, all layers.
            bandwidth: bytes per second of the memory of one replica.
            flops: operations per second of one replica.
            efficiency: share of both that is reached.
            overhead: seconds of a step outside the device.
            parameter_bytes: bytes of one parameter.

        Raises:
            BudgetctlError: for a value that is not above 0, or an efficiency above 1.
        """
        given = {
            "parameters": parameters,
            "kv_bytes": kv_bytes,
            "bandwidth": bandwidth,
            "flops": flops,
            "efficiency": efficiency,
            "parameter_bytes": parameter_bytes,
        }
        for name, value in given.items():
            if not 0 < value < math.inf or (name == "efficiency" and value > 1):
                limit = "above 0, at most 1" if name == "efficiency" else "above 0"
                raise BudgetctlError(f"{name}={value!r}: expected a number {limit}; correct it")
        per_token = 2 * parameters / (flops * efficiency)
        return cls(
            base=overhead + parameters * parameter_bytes / (bandwidth * efficiency),
            row=per_token,
            kv_token=kv_bytes / (bandwidth * efficiency),
            prefill_token=per_token,
        )


@dataclass(frozen=True)
class ReplicaShape:
    """What one replica (a GPU, or several under tensor parallelism) has room for.

    Args:
        blocks: KV blocks of the pool.
        block_size: tokens of a block.
        max_rows: requests of a step at most.
        max_batch_tokens: tokens of a step at most, prompts in chunks among them; at least ``max_rows``.

    Raises:
        BudgetctlError: for values that make no sense.
    """

    blocks: int
    block_size: int = 16
    max_rows: int = 256
    max_batch_tokens: int = 8192

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BudgetctlError(f"{name}={value!r}: expected a whole number, at least 1; correct it")
        if self.max_batch_tokens < self.max_rows:
            raise BudgetctlError(
                f"max_batch_tokens={self.max_batch_tokens} for max_rows={self.max_rows}: expected at least a token a "
                "row; raise the one or lower the other"
            )
