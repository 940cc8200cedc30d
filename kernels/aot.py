"""Triton kernels compiled ahead of time, without a GPU: what they take of one, and the least time their bytes allow.

Registers, spills and shared memory are read from the compiled kernel. Bytes and floating-point operations are counted,
not measured; :data:`DEVICES` has the data sheets' bandwidth and throughput that turn them into a lower bound of time.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from budgetctl.errors import KernelError
from budgetctl.kernels.gamma_guidance import has_triton

#: Device -> (bytes a second from HBM, float32 operations a second), NVIDIA's data sheets of the SXM modules.
DEVICES = {"H100": (3.35e12, 66.9e12), "H200": (4.8e12, 66.9e12)}
#: Operations a second of the tensor cores in float16 or bfloat16, dense; the same on both.
TENSOR_FLOPS = 989e12
TRITON_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Resources:
    """Of one program: registers a thread, bytes spilled (stores + loads), bytes of shared memory, threads, and
    float32 operations a thread executes, a loop's body once (a fused multiply-add is two)."""

    registers: int
    spilled: int
    shared: int
    threads: int
    flops: int


@dataclass(frozen=True)
class LaunchCost:
    """Of one launch: programs, bytes to and from HBM, float32 operations, and operations of the tensor cores."""

    programs: int
    bytes: int
    flops: int
    tensor_flops: int = 0

    def seconds(self, device: str) -> float:
        """Lower bound of the time on one of :data:`DEVICES`, launch not counted."""
        bandwidth, throughput = DEVICES[device]
        return max(self.bytes / bandwidth, self.flops / throughput, self.tensor_flops / TENSOR_FLOPS)


def compile_kernel(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    aligned: Iterable[str],
    *,
    warps: int,
    stages: int | None = None,
    capability: int = 90,
) -> tuple[Resources, str]:
    """Compile for ``sm_{capability}``; needs Triton, no GPU.

    Args:
        kernel: of ``triton.jit``.
        types: Triton's type of each argument that is no int32.
        constants: compile-time constants, and None for arguments that are left out.
        aligned: pointers and integers that are multiples of 16, as torch's allocations are.
        warps: of a program.
        stages: of loops that load ahead; None for Triton's own.
        capability: compute capability times ten.

    Returns:
        ``(resources, PTX)``.

    Raises:
        KernelError: without Triton, or in a process in which Triton interprets.
    """
    require_compiler()
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    source = ASTSource(
        kernel,
        signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned if name not in constants},
    )
    options = {"num_warps": warps, "enable_fp_fusion": True}
    if stages is not None:
        options["num_stages"] = stages
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = compiled.asm["ptx"]
    registers, spilled = _assembled(ptx, capability)
    return Resources(registers, spilled, compiled.metadata.shared, 32 * warps, _flops(ptx)), ptx


def require_compiler() -> None:
    """Raise :class:`KernelError` where Triton cannot compile."""
    if not has_triton() or os.environ.get("TRITON_INTERPRET") == "1":
        raise KernelError("no Triton compiler: install budgetctl[gpu] and leave TRITON_INTERPRET unset")


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
    """float32 operations in the code, the body of each loop once."""
    twice = len(re.findall(r"\bfma\.[\w.]*f32\b", ptx))
    once = len(re.findall(r"\b(?:add|sub|mul|div|min|max|sqrt|ex2|lg2|rcp)\.[\w.]*f32\b", ptx))
    return 2 * twice + once
