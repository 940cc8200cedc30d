"""The tables of docs/kernels.md: ``python -m budgetctl.evals.kernel_tables accuracy|resources|roofline|recovery``.

``accuracy`` compares log P with mpmath on a grid; with ``TRITON_INTERPRET=1`` (or a CUDA device) the Triton kernel too.
``resources`` compiles the guidance kernel ahead of time, without a GPU. ``roofline`` counts what one launch moves.
``recovery`` times the way from logits to the predictor's features.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console

from budgetctl.kernels.log_gamma_cdf import log_gamma_cdf
from budgetctl.kernels.resources import DEVICES, compiled_resources, launch_cost
from budgetctl.predictors.folded import FoldedFeatures
from budgetctl.predictors.gamma import GammaLengthPredictor, GammaPredictorConfig
from budgetctl.predictors.hidden_state import LogitsHiddenState

SHAPES = (1e-3, 1e-2, 0.1, 0.5, 1.0, 2.0, 2.99, 3.01, 5.99, 6.01, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4)
LOG_PROBS = (-700.0, -500.0, -300.0, -100.0, -30.0, -10.0, -3.0, -1.0, -0.3, -0.1, -1e-2, -1e-4, -1e-8)
BANDS = ((-750.0, -100.0), (-100.0, -10.0), (-10.0, -1.0), (-1.0, 0.0))
BATCHES = (1, 8, 32, 128)
VOCABS = (32_000, 151_936, 256_000)
DIGITS = 40
#: Hidden size and vocabulary of the embedded reasoner and of Qwen3-0.6B.
RECOVERED = ((256, 384), (1024, 151_936))

app = typer.Typer(help=__doc__, add_completion=False)


def grid(least_z: float = 1e-300) -> tuple[torch.Tensor, torch.Tensor]:
    """``(shape, z)`` float64, all of :data:`SHAPES` at the quantiles with :data:`LOG_PROBS` that are numbers above
    ``least_z`` (a shape of 1e-3 has its log P of -700 at z = 1e-304000)."""
    shape, target = torch.meshgrid(_double(SHAPES), _double(LOG_PROBS), indexing="ij")
    return _at_quantiles(shape.flatten(), target.flatten(), least_z)


def sweep(points: int, least_z: float = 1e-300, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The same at random: shapes log-uniform from 1e-3 to 1e4, log P from -700 to -1e-8, more of it near 0."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(2, points, generator=generator, dtype=torch.float64)
    return _at_quantiles(10 ** (7 * uniform[0] - 3), -700 * uniform[1] ** 6 - 1e-8, least_z)


def _at_quantiles(
    shape: torch.Tensor, target: torch.Tensor, least_z: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shapes and z whose log P is ``target``, by bisection, where z is above ``least_z``."""
    low, high = torch.full_like(shape, np.log(least_z)), torch.full_like(shape, np.log(1e6))
    reached = log_gamma_cdf(shape, 1.0, low.exp()) <= target
    for _ in range(100):
        middle = (low + high) / 2
        below = log_gamma_cdf(shape, 1.0, middle.exp()) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return shape[reached], high[reached].exp()


def exact_log_cdf(shape: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """log P [n] by mpmath in 40 digits, from the nearer tail; float64."""
    import mpmath  # type: ignore[import-untyped]

    def one(a: float, b: float) -> float:
        p = mpmath.gammainc(a, 0, b, regularized=True)
        if p < 0.5:
            return float(mpmath.log(p))
        return float(mpmath.log1p(-mpmath.gammainc(a, b, mpmath.inf, regularized=True)))

    with mpmath.workdps(DIGITS):
        return _double([one(a, b) for a, b in zip(shape.tolist(), z.tolist(), strict=True)])


def ways() -> dict[str, tuple[torch.dtype, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]]:
    """Name -> dtype of what goes in, and the function; the kernel only where it can run."""

    def differentiable(shape: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return log_gamma_cdf(shape.clone().requires_grad_(), 1.0, z).detach()

    found: dict[str, tuple[torch.dtype, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {
        "PyTorch": (torch.float64, lambda shape, z: log_gamma_cdf(shape, 1.0, z)),
        "PyTorch, with gradient": (torch.float64, differentiable),
    }
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if interpreted or torch.cuda.is_available():
        device = "cpu" if interpreted else "cuda"

        def kernel(shape: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
            from budgetctl.kernels.log_gamma_cdf_triton import log_gamma_cdf_kernel

            result = torch.empty(len(z), device=device)
            programs = -(-len(z) // 1024)
            log_gamma_cdf_kernel[(programs,)](shape.to(device), z.to(device), result, len(z), 1024)
            return result.cpu()

        name = "Triton, interpreted" if interpreted else f"Triton, {torch.cuda.get_device_name()}"
        found[name] = (torch.float32, kernel)
    return found


@app.command()
def accuracy(
    points: Annotated[int, typer.Option(help="random points beside the grid")] = 1000,
) -> None:
    """Largest error of log P on the grid and on a random sweep, by band of log P."""
    lines = [
        "| log P by | dtype | points | " + " | ".join(f"{low:g} to {high:g}" for low, high in BANDS) + " |"
    ]
    lines.append("|---" * (len(BANDS) + 3) + "|")
    for name, (dtype, function) in ways().items():
        least = 1e-30 if dtype == torch.float32 else 1e-300
        for kind, chosen in (("grid", grid(least)), ("random", sweep(points, least))):
            shape, z = (t.to(dtype) for t in chosen)
            expected = exact_log_cdf(shape, z)
            error = (function(shape, z).double() - expected).abs()
            cells = []
            for low, high in BANDS:
                inside = (expected >= low) & (expected <= high)
                cells.append(f"{float(error[inside].max()):.1e} (n = {int(inside.sum())})")
            lines.append(
                f"| {name} | {str(dtype).removeprefix('torch.')} | {kind} | " + " | ".join(cells) + " |"
            )
    _show(lines)


@app.command()
def resources() -> None:
    """What the compiled kernel takes, for each variant."""
    lines = [
        "| tail | target interval | logits | registers a thread | spilled bytes | shared bytes | threads | float32 operations a thread |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for tail in ("exact", "relative"):
        for interval in (False, True):
            for dtype in (torch.float32, torch.bfloat16):
                r = compiled_resources(tail=tail, interval=interval, dtype=dtype)
                kind = str(dtype).removeprefix("torch.")
                lines.append(
                    f"| {tail} | {'yes' if interval else 'no'} | {kind} | {r.registers} | {r.spilled} | {r.shared} "
                    f"| {r.threads} | {r.flops} |"
                )
    _show(lines)


@app.command()
def roofline() -> None:
    """Bytes and operations of one launch with float32 logits in place, and the least time they allow (not measured)."""
    heads = [f"us, {name} (not measured)" for name in DEVICES]
    lines = [
        "| tail | batch | vocabulary | programs | MB | MFLOP | " + " | ".join(heads) + " |",
        "|---" * (6 + len(heads)) + "|",
    ]
    for tail in ("relative", "exact"):
        # What a relative tail costs does not depend on the vocabulary.
        vocabs = VOCABS if tail == "exact" else VOCABS[:1]
        flops = compiled_resources(tail=tail).flops
        for vocab in vocabs:
            for batch in BATCHES:
                cost = launch_cost(batch, vocab, tail=tail, flops_a_thread=flops)
                least = [f"{1e6 * cost.seconds(name):.3g}" for name in DEVICES]
                lines.append(
                    f"| {tail} | {batch} | {f'{vocab:,}' if tail == 'exact' else 'any'} | {cost.programs} | {cost.bytes / 1e6:.3f} "
                    f"| {cost.flops / 1e6:.2f} | " + " | ".join(least) + " |"
                )
    _show(lines)


@app.command()
def recovery(
    batches: Annotated[str, typer.Option(help="batch sizes")] = "1,8",
    seconds: Annotated[float, typer.Option(help="measuring time of each")] = 2.0,
) -> None:
    """Milliseconds from logits to features on this machine's CPU: through the hidden state, and folded (medians)."""
    from torch.utils.benchmark import Timer

    lines = [
        "| d | V | anchors | batch | ms through the hidden state | ms folded | ratio |",
        "|---" * 7 + "|",
    ]
    for hidden, vocab in RECOVERED:
        torch.manual_seed(0)
        embedding = 0.02 * torch.randn(vocab, hidden)
        predictor = GammaLengthPredictor(GammaPredictorConfig(hidden))
        source = LogitsHiddenState(embedding)
        features = FoldedFeatures(source, *predictor.input_map(), torch.float32)
        for batch in map(int, batches.split(",")):
            names = {"features": features, "scores": torch.randn(batch, hidden) @ embedding.T}
            with torch.inference_mode():
                before, after = (
                    1e3
                    * Timer(statement, globals=names, num_threads=torch.get_num_threads())
                    .blocked_autorange(min_run_time=seconds)
                    .median
                    for statement in ("features.through_hidden_state(scores)", "features(scores)")
                )
            lines.append(
                f"| {hidden} | {vocab:,} | {len(source.anchors):,} | {batch} | {before:.3f} | {after:.3f} "
                f"| {before / after:.1f}x |"
            )
    _show(lines)


def _double(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _show(lines: list[str]) -> None:
    Console().print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
