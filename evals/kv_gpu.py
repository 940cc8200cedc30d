"""Everything about the KV kernels that only a GPU can show, in one run: ``python -m budgetctl.evals.kv_gpu``.

Checks (the kernel against the reference in float64, races, graphs) come first, then milliseconds of a call of attention and
of a decode step with the shapes of an 8-billion-parameter model and random weights, at 1, 8 and 32 rows and 2k to 32k
tokens. PyTorch may take cuDNN for SDPA on a Hopper GPU, which plans anew for each length of the keys and so at each token
of a growing cache; it is switched off (``--cudnn`` leaves it on). Results are written after each part, as JSON and Markdown, so that a run that is cut short leaves what it has.
Without a CUDA device ``--small`` runs all of it in small, which shows that the script works and nothing else.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from transformers import Qwen3Config

from budgetctl.evals import kv_gpu_checks
from budgetctl.evals.guidance_subjects import shape_config, shaped_model
from budgetctl.evals.kv_bench import CAPTURE_FAILED, RUN, WARM, Timing, bench
from budgetctl.evals.kv_report import markdown
from budgetctl.evals.kv_subjects import FULL, KVPRESS, STATIC, Setting, kvpress_missing
from budgetctl.evals.output import write_text

PARTS = ("equality", "races", "graph", "calls", "steps")
BATCHES = (1, 8, 32)
LENGTHS = (2048, 4096, 8192, 16_384, 32_768)
CAPACITY = 2048
RUNS = 4
#: Part of the device's free memory that caches may take.
SHARE = 0.85

app = typer.Typer(help=__doc__, add_completion=False)


class Report:
    """Results so far.

    Args:
        folder: that ``kv_gpu.json`` and ``kv_gpu.md`` are written to.
        device: all of it runs on.
        seconds: after which no new part or setting is begun.
    """

    def __init__(self, folder: Path, device: torch.device, seconds: float) -> None:
        self.folder, self.device = folder, device
        self._until, self._begun = time.perf_counter() + seconds, time.perf_counter()
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        cudnn = device.type == "cuda" and torch.backends.cuda.cudnn_sdp_enabled()
        self.found: dict[str, Any] = {
            "device": name,
            "torch": torch.__version__,
            "cudnn_sdpa": cudnn,
            "left_out": [],
        }
        self.timings: list[Timing] = []

    @property
    def late(self) -> bool:
        """Whether the time is up."""
        return time.perf_counter() > self._until

    def left(self, why: str) -> None:
        """Note what is left out."""
        self.found["left_out"].append(why)

    def part(self, name: str, run: Callable[[], Any]) -> None:
        """Run a part, keep what it returns, and write the files; an error is kept in place of a result."""
        if self.late:
            self.left(f"{name}: the time was up")
            return
        start = time.perf_counter()
        try:
            result = run()
        except Exception as error:  # whatever it is, the other parts may still be had
            told = (str(error).splitlines() or [""])[0]
            result = {"failed": f"{type(error).__name__}: {told}"}
        self.found[name] = {"seconds": round(time.perf_counter() - start, 1), "result": result}
        self.write()

    def write(self) -> None:
        """Both files, whole or not at all."""
        whole = self.found | {
            "seconds": round(time.perf_counter() - self._begun, 1),
            "timings": [timing.as_dict() for timing in self.timings],
        }
        write_text(self.folder / "kv_gpu.json", json.dumps(whole, indent=1))
        write_text(self.folder / "kv_gpu.md", self.markdown())

    def markdown(self) -> str:
        """Checks a line each, and the tables of times."""
        allowed = "allowed" if self.found["cudnn_sdpa"] else "off"
        lines = [f"{self.found['device']}, torch {self.found['torch']}, SDPA by cuDNN {allowed}", ""]
        equal = self.found.get("equality", {}).get("result")
        if isinstance(equal, list):
            lines += [
                "| dtype | shapes | largest error of an output | of an importance | passed |",
                "|---" * 5 + "|",
            ]
            for dtype in dict.fromkeys(case["dtype"] for case in equal):
                these = [case for case in equal if case["dtype"] == dtype]
                passed = sum(case["passed"] for case in these)
                output, importance = (max(case[name] for case in these) for name in ("output", "importance"))
                lines.append(
                    f"| {dtype} | {len(these)} | {output:.1e} | {importance:.1e} | {passed} of {len(these)} |"
                )
            lines.append("")
        for name in PARTS:
            result = self.found.get(name, {}).get("result")
            if isinstance(result, dict):
                lines.append(f"{name}: " + ", ".join(f"{key} {value}" for key, value in result.items()))
        lines += ["", markdown(self.timings), "", *(f"left out: {why}" for why in self.found["left_out"])]
        return "\n".join(lines) + "\n"


def times(
    report: Report, kind: str, config: Any, model: Any, settings: list[Setting], seconds: float
) -> dict[str, int]:
    """Time the settings of a kind, as long as there is time."""
    cuda = report.device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    methods = [FULL, "diverse-max", STATIC]
    missing = kvpress_missing()
    if kind == "call":
        methods.insert(2, "decayed-max")
    else:
        methods += [KVPRESS] * (missing is None)
        if missing:
            report.left(missing)
    begun = len(report.timings)
    graphs = True
    for setting in settings:
        if report.late:
            report.left(f"{kind}, {setting.batch} rows, {setting.tokens} tokens: the time was up")
            continue
        free = torch.cuda.mem_get_info(report.device)[0] if cuda else 2**30
        found = bench(
            "qwen3-8b" if cuda else "small",
            config,
            model,
            [setting],
            methods,
            kind=kind,
            dtype=dtype,
            device=report.device,
            seconds=seconds,
            most_bytes=SHARE * free,
            left=report.left,
            graphs=graphs,
        )
        for timing in found:
            report.timings.append(timing)
        # A capture that failed fails again, and may leave the device in disorder.
        graphs = not any(CAPTURE_FAILED in why for why in report.found["left_out"])
        report.write()
    return {"timings": len(report.timings) - begun}


def settings_of(
    batches: tuple[int, ...], lengths: tuple[int, ...], capacity: int, runs: int
) -> list[Setting]:
    """Short thoughts first, so that what is cut for time is what takes longest."""
    steps = WARM + 2 * runs * RUN
    # As often as there are timed steps, so that each method of kvpress compresses among them once.
    return [
        Setting(rows, count, capacity, runs, steps, interval=RUN * runs)
        for count in lengths
        for rows in batches
    ]


def small_config() -> Qwen3Config:
    """Of a model that is made in no time."""
    return Qwen3Config(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    )


@app.command()
def main(
    folder: Annotated[Path, typer.Option("--out", help="folder of the results")] = Path("runs/kv_gpu"),
    seconds: Annotated[float, typer.Option(help="no part is begun later", min=0)] = 420.0,
    launches: Annotated[int, typer.Option(help="of the race check", min=1)] = 1000,
    batches: Annotated[str, typer.Option(help="rows")] = ",".join(map(str, BATCHES)),
    lengths: Annotated[str, typer.Option(help="tokens of the thought so far")] = ",".join(map(str, LENGTHS)),
    parts: Annotated[str, typer.Option(help="what to run")] = ",".join(PARTS),
    cudnn: Annotated[bool, typer.Option(help="let SDPA take cuDNN")] = False,
    small: Annotated[bool, typer.Option(help="everything in small, on any device")] = False,
) -> None:
    """Run the checks and the timings on the CUDA device."""
    if not torch.cuda.is_available() and not small:
        raise typer.BadParameter("no CUDA device: expected one; --small runs the script in small without")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = [part.strip() for part in parts.split(",")]
    if unknown := set(chosen) - set(PARTS):
        raise typer.BadParameter(f"--parts {min(unknown)}: expected some of {', '.join(PARTS)}")
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
    report = Report(folder, device, seconds)
    shapes = [(2, 16, 2, [40, 24])] if small else kv_gpu_checks.SHAPES
    one = (2, 16, 1, [300, 170]) if small else (4, 128, 4, [2048] * 7 + [1100])
    if small:
        config, settings = small_config(), settings_of((1, 2), (80, 160), 64, 2)
    else:
        rows, tokens = (tuple(map(int, text.split(","))) for text in (batches, lengths))
        config, settings = shape_config("qwen3-8b"), settings_of(rows, tokens, CAPACITY, RUNS)

    def steps() -> dict[str, int]:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        return times(report, "step", config, shaped_model(config, device, dtype), settings, 5.0)

    run: dict[str, Callable[[], Any]] = {
        "equality": lambda: kv_gpu_checks.equality(device, shapes),
        "races": lambda: kv_gpu_checks.races(device, launches, shape=one),
        "graph": lambda: kv_gpu_checks.graph(device),
        "calls": lambda: times(report, "call", config, None, settings, 0.5),
        "steps": steps,
    }
    for name in PARTS:
        if name in chosen:
            report.part(name, run[name])
    report.write()
    Console().print(report.markdown(), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app()
