"""Whether the host may look at a tensor's values to leave work out."""

from __future__ import annotations

import torch


def may_look(device: torch.device) -> bool:
    """True where values are read at no cost: on the CPU. On another device the host would have to wait for it, and under
    ``torch.compile`` the graph would break; there everything is computed and selected."""
    return device.type == "cpu" and not torch.compiler.is_compiling()
