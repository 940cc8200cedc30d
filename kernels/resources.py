"""What the guidance kernel takes of a GPU and moves in one launch: compiled ahead of time, without a GPU.

Registers, spills and shared memory are read from the compiled kernel. Bytes and floating-point operations are counted,
not measured; :data:`DEVICES` has the data sheets' bandwidth and throughput that turn them into a lower bound of time.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from budgetctl.errors import KernelError
from budgetctl.kernels.gamma_guidance import WARPS, has_triton, launch_options
from budgetctl.kernels.row_state import CLOSING, GuidanceHead

#: Device -> (bytes a second from HBM, float32 operations a second), NVIDIA's data sheets of the SXM modules.
DEVICES = {"H100": (3.35e12, 66.9e12), "H200": (4.8e12, 66.9e12)}
TRITON_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Resources:
    """Of one program: registers a thread, bytes spilled (stores + loads), bytes of shared memory, threads, and
    float32 operations a thread executes (a fused multiply-add is two)."""

    registers: int
    spilled: int
    shared: int
    threads: int
    flops: int


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
        capability: compute capability times ten.

    Raises:
        KernelError: without Triton, or in a process in which Triton interprets.
    """
    if not has_triton() or os.environ.get("TRITON_INTERPRET") == "1":
        raise KernelError("no Triton compiler: install budgetctl[gpu] and leave TRITON_INTERPRET unset")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from budgetctl.kernels.gamma_guidance_triton import gamma_guidance_kernel

    head = shape_of_head(vocab, width, rank)
    _, constants = launch_options(
        1, vocab, candidates, closes, head, interval=interval, exact=tail == "exact", in_place=True
    )
    names = gamma_guidance_kernel.arg_names
    pointers = dict.fromkeys(("features", "weight", "bias", "table", "scores", "state_fit"), "*fp32")
    pointers |= dict.fromkeys(("logits", "out"), "*" + TRITON_TYPES[dtype])
    pointers |= {"scores": "*" + TRITON_TYPES[dtype], "ids": "*i64", "rows": "*fp64", "floor": "fp32"}
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names}
    # torch's allocations are aligned, and so are rows of a vocabulary that is a multiple of 16.
    aligned = [n for n in pointers if n != "floor"]
    aligned += ["logits_stride", "out_stride"] if vocab % 16 == 0 else []
    source = ASTSource(
        gamma_guidance_kernel,
        signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": WARPS, "enable_fp_fusion": True},
    )
    registers, spilled = _assembled(compiled.asm["ptx"], capability)
    return Resources(registers, spilled, compiled.metadata.shared, 32 * WARPS, _flops(compiled.asm["ptx"]))


@dataclass(frozen=True)
class LaunchCost:
    """Of one launch: programs, bytes to and from HBM, float32 operations."""

    programs: int
    bytes: int
    flops: int

    def seconds(self, device: str) -> float:
        """Lower bound of the time on one of :data:`DEVICES`, launch not counted."""
        bandwidth, throughput = DEVICES[device]
        return max(self.bytes / bandwidth, self.flops / throughput)


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


def _assembled(ptx: str, capability: int) -> tuple[int, int]:
    """``(registers, spilled bytes)`` as the assembler that comes with Triton reports them."""
    from triton.backends.nvidia.compiler import get_ptxas

    target = re.search(r"\.target (\w+)", ptx)
    assert target is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        report = subprocess.run(
            [get_ptxas(capability).path, "-v", f"--gpu-name={target[1]}", str(path), "-o", f"{path}.cubin"],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
    registers = re.search(r"Used (\d+) registers", report)
    spills = re.findall(r"(\d+) bytes spill", report)
    assert registers is not None
    return int(registers[1]), sum(map(int, spills))


def _flops(ptx: str) -> int:
    """float32 operations in the code, a block of the vocabulary included; there is no other loop."""
    twice = len(re.findall(r"\bfma\.[\w.]*f32\b", ptx))
    once = len(re.findall(r"\b(?:add|sub|mul|div|min|max|sqrt|ex2|lg2|rcp)\.[\w.]*f32\b", ptx))
    return 2 * twice + once
