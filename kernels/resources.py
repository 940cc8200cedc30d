"""What the guidance kernel takes of a GPU and moves in one launch: compiled ahead of time, without a GPU (see ``aot``)."""

from __future__ import annotations

import torch

from budgetctl.kernels.aot import (
    DEVICES,
    TRITON_TYPES,
    LaunchCost,
    Resources,
    compile_kernel,
    require_compiler,
)
from budgetctl.kernels.gamma_guidance import WARPS, launch_options
from budgetctl.kernels.row_state import CLOSING, GuidanceHead

__all__ = ["DEVICES", "LaunchCost", "Resources", "compiled_resources", "launch_cost", "shape_of_head"]


def shape_of_head(vocab: int, width: int = 64, rank: int = 16) -> GuidanceHead:
    """A head without data (meta tensors), for its sizes."""

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, device="meta")

    return GuidanceHead(empty(2, width), empty(2), empty(vocab, rank), 1e-4)


def compiled_resources(
    vocab: int = 151_936,
    candidates: int = 64,
    closes: int = 1,
    *,
    width: int = 64,
    rank: int = 16,
    interval: bool = False,
    tail: str = "exact",
    dtype: torch.dtype = torch.float32,
    number: str = "fp32",
    capability: int = 90,
) -> Resources:
    """Compile the guidance kernel for ``sm_{capability}`` and report what it takes; needs Triton, no GPU.

    Args:
        vocab: V.
        candidates: k.
        closes: closing tokens a row.
        width: pre-activations of the predictor's trunk.
        rank: of the token term.
        interval: with lower ends.
        tail: as of :func:`~budgetctl.kernels.gamma_guidance.gamma_guidance`; both are compiled for work in place.
        dtype: of the logits: float32, bfloat16 or float16.
        number: what a Python number is passed as: ``fp32`` by Triton itself, ``fp64`` by ``torch.compile``.
        capability: compute capability times ten.

    Raises:
        KernelError: without Triton, or in a process in which Triton interprets.
    """
    require_compiler()
    from budgetctl.kernels.gamma_guidance_triton import gamma_guidance_kernel

    head = shape_of_head(vocab, width, rank)
    _, constants = launch_options(
        1, vocab, candidates, closes, head, interval=interval, exact=tail == "exact", in_place=True
    )
    types = dict.fromkeys(("features", "weight", "bias", "table", "state_fit"), "*fp32")
    types |= dict.fromkeys(("logits", "out", "scores"), "*" + TRITON_TYPES[dtype])
    types |= {"ids": "*i64", "rows": "*fp64", "floor": number}
    # torch's allocations are aligned, and so are rows of a vocabulary that is a multiple of 16.
    aligned = [n for n in types if n != "floor"]
    aligned += ["logits_stride", "out_stride"] if vocab % 16 == 0 else []
    return compile_kernel(
        gamma_guidance_kernel, types, constants, aligned, warps=WARPS, capability=capability
    )[0]


def launch_cost(
    batch: int,
    vocab: int,
    candidates: int = 64,
    closes: int = 1,
    *,
    flops_a_thread: int,
    width: int = 64,
    rank: int = 16,
    tail: str = "exact",
    itemsize: int = 4,
) -> LaunchCost:
    """Bytes and operations of a launch in place in which all rows are guided; counted, not measured.

    Each byte counts once from HBM, however many programs read it. A logit that stands alone moves a sector of 32 bytes
    each way.

    Args:
        batch: B.
        vocab: V.
        candidates: k.
        closes: closing tokens a row.
        flops_a_thread: of :func:`compiled_resources`.
        width: pre-activations of the predictor's trunk.
        rank: of the token term.
        tail: ``exact`` or ``relative``.
        itemsize: bytes of a logit.
    """
    head = shape_of_head(vocab, width, rank)
    parts, constants = launch_options(
        batch, vocab, candidates, closes, head, interval=False, exact=tail == "exact", in_place=True
    )
    sector = 32
    row = 4 * (width + 2 * rank)  # features
    row += candidates * (itemsize + 8 + 4 * rank)  # scores, ids, rows of the table
    row += 8 * (CLOSING + closes) + 4  # row state, state_fit
    row += 2 * itemsize * vocab if tail == "exact" else 2 * sector * (candidates + closes)
    weights = 4 * 2 * (width + 1)
    programs = batch * parts
    # The code holds the loop over a program's blocks once; what it adds there is one operation a logit.
    again = (constants["BLOCKS"] - 1) * constants["BLOCK_V"] if tail == "exact" else 0
    return LaunchCost(programs, batch * row + weights, programs * (32 * WARPS * flops_a_thread + again))
