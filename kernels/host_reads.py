"""Whether the host may look at a tensor's values to leave work out, and how NumPy looks at them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def may_look(device: torch.device) -> bool:
    """True where values are read at no cost: on the CPU. On another device the host would have to wait for it, and under
    ``torch.compile`` the graph would break; there everything is computed and selected."""
    return device.type == "cpu" and not torch.compiler.is_compiling()


def array_of(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The memory of a CPU tensor as an array, not a copy. NumPy has no bfloat16."""
    return (tensor.detach() if tensor.requires_grad else tensor).numpy()
