"""What a cache costs a decode step, kind by kind, after thoughts of given lengths: behind ``budgetctl bench kv``.

The subjects of a setting take turns, a run of steps each, in an order that changes, and are compared with the DynamicCache
of the same setting: the ratio of the times of all runs, with a bootstrap interval over runs. Runs are as long as anything
that happens once in a few steps (a choice of victims) but for kvpress' compressions, which come once in ``interval``
steps; all steps are counted, so that such a step weighs what it costs.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from budgetctl.errors import BudgetctlError
from budgetctl.evals.kv_bytes import CacheShape, bandwidth_of, least_bytes
from budgetctl.evals.kv_fill import Drawn
from budgetctl.evals.kv_graphs import Graphed
from budgetctl.evals.kv_subjects import FULL, KVPRESS, STATIC, AttentionCall, Decoder, Setting, Subject, make

#: Steps of a run, and steps before the first that are not counted.
RUN, WARM = 16, 4
GIB = 2**30
#: Calls of attention go from layer to layer over as many bytes, as in a model, so that none finds its keys in a cache of
#: the processor because it has just read them.
OUT_OF_CACHE = 256 * 2**20
RESAMPLES = 2000
CAPTURE_FAILED = "as a CUDA graph left out"
Left = Callable[[str], None]


@dataclass(frozen=True)
class Timing:
    """One cache in one setting.

    Args:
        model: the model's name.
        kind: ``step`` of the whole model, or ``call`` of one layer's attention.
        method: the cache's name.
        batch: rows.
        tokens: seen before.
        capacity: slots a head that a BudgetCache was given; 0 for as many as tokens.
        runs: number of runs.
        ms: mean milliseconds.
        ratio: of the time to DynamicCache's; None without one.
        low: end of the ratio's 95 % interval.
        high: other end.
        allocated: bytes of the cache before the timed steps, of all layers or of the one.
        moved: bytes a step that the cache's kind moves, counted; all layers, or the one.
        least: bytes a step that have to be moved for the tokens that are held; likewise.
        least_ms: milliseconds that ``least`` takes at the bandwidth of the device; None where that is not known.
    """

    model: str
    kind: str
    method: str
    batch: int
    tokens: int
    capacity: int
    runs: int
    ms: float
    ratio: float | None
    low: float | None
    high: float | None
    allocated: int
    moved: float
    least: int
    least_ms: float | None

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def run_ms(step: Callable[[], object], steps: int, device: torch.device) -> float:
    """Milliseconds of ``steps`` steps: by events on CUDA, by :func:`cpu_clock` on the CPU."""
    if device.type != "cuda":
        clock = cpu_clock()
        start = clock()
        for _ in range(steps):
            step()
        return 1e3 * (clock() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(steps):
        step()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def cpu_clock() -> Callable[[], float]:
    """Seconds of this process, where it computes with one thread, so that other programs do not count; else of the day."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def take_turns(
    steps: Sequence[Any], device: torch.device, *, runs: int, seconds: float, least: int = 2
) -> list[list[float]]:
    """Milliseconds of each run of :data:`RUN` steps, by subject; ends after ``runs`` or about ``seconds``.

    Args:
        steps: callables with a ``ready`` that makes a context; one with a ``length`` does its work once in so many calls,
            and is timed for a multiple of that.
        device: to wait for.
        runs: most runs of each.
        seconds: of all.
        least: fewest runs of each.
    """
    found: list[list[float]] = [[] for _ in steps]
    for step in steps:
        with step.ready():
            for _ in range(max(WARM, getattr(step, "length", 1))):
                step()
    until = time.perf_counter() + seconds
    for turn in range(runs):
        order = range(len(steps)) if turn % 2 == 0 else reversed(range(len(steps)))
        for i in order:
            with steps[i].ready():
                length = getattr(steps[i], "length", 1)
                count = -(-RUN // length) * length
                found[i].append(run_ms(steps[i], count, device) * RUN / count)
        if turn + 1 >= least and time.perf_counter() > until:
            break
    return found


def compare(times: Sequence[float], full: Sequence[float]) -> tuple[float, float, float]:
    """Ratio of two sums of paired runs, with a percentile-bootstrap interval over runs."""
    ours, theirs = np.asarray(times), np.asarray(full)
    drawn = np.random.default_rng(0).integers(0, len(ours), (RESAMPLES, len(ours)))
    ratios = ours[drawn].sum(1) / theirs[drawn].sum(1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(ours.sum() / theirs.sum()), float(low), float(high)


def bench(
    name: str,
    config: Any,
    model: Any,
    settings: Sequence[Setting],
    methods: Sequence[str],
    *,
    kind: str,
    dtype: torch.dtype,
    device: torch.device,
    seconds: float,
    most_bytes: float,
    left: Left,
    graphs: bool = False,
) -> Iterator[Timing]:
    """Timings of every method in every setting.

    Args:
        name: of the model.
        config: of the model.
        model: None for calls of attention, which need none.
        settings: what to time.
        methods: names of :func:`budgetctl.evals.kv_subjects.make`; ratios are to the DynamicCache among them.
        kind: ``step`` or ``call``.
        dtype: of keys and values.
        device: of the model.
        seconds: about how long a setting is timed.
        most_bytes: of all caches of a setting together; one that does not fit beside those before it is left out.
        left: told what is left out, and why.
        graphs: on CUDA also time what can be captured as a CUDA graph, as methods of their own.
    """
    if kind not in ("step", "call"):
        raise BudgetctlError(f"kind={kind!r}: expected 'step' or 'call'")
    bandwidth = bandwidth_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    for setting in settings:
        drawn = Drawn(config, setting.batch, dtype, device)
        layers = drawn.layers
        if kind == "call":
            layer = drawn.token_bytes // drawn.layers * setting.batch * min(setting.tokens, setting.slots)
            layers = min(layers, -(-OUT_OF_CACHE // layer))
        subjects: list[Subject] = []
        where = f"{name}, {kind}, {setting.batch} rows, {setting.tokens} tokens"
        for method in methods:
            room = most_bytes - sum(subject.allocated for subject in subjects)
            held = setting.tokens if method in (FULL, STATIC) else setting.slots
            needed = drawn.token_bytes * held * setting.batch * layers // drawn.layers
            if needed > room:
                left(f"{where}: {method} left out, it takes {needed / GIB:.1f} GiB of {room / GIB:.1f}")
                continue
            try:
                subjects.append(make(method, drawn, setting, layers=layers))
            except torch.cuda.OutOfMemoryError:
                left(f"{where}: {method} left out, the device's memory is full")
        if not subjects:
            continue
        steps = [
            AttentionCall(drawn, subject, setting, layers)
            if kind == "call"
            else Decoder(model, subject, setting)
            for subject in subjects
        ]
        # A compression of kvpress has to be among what is timed.
        pressed = any(subject.name.startswith(KVPRESS) for subject in subjects)
        least = min(setting.interval // RUN, setting.runs) if pressed else 2
        try:
            times = take_turns(steps, device, runs=setting.runs, seconds=seconds, least=max(least, 2))
        except torch.cuda.OutOfMemoryError:
            left(f"{where}: left out, the device's memory is full")
            times = []
        names = [subject.name for subject in subjects]
        full = times[names.index(FULL)] if times and FULL in names else None
        yield from _timings(name, kind, setting, drawn, subjects, times, full, layers, bandwidth)
        if graphs and device.type == "cuda" and times:
            for subject, step in zip(subjects, steps, strict=True):
                try:
                    again = Graphed.of(step, subject, setting)
                    if again is None:
                        continue
                    one = take_turns([again], device, runs=max(setting.runs // 2, 1), seconds=seconds)
                except RuntimeError as error:
                    told = (str(error).splitlines() or [""])[0]
                    left(f"{where}: {subject.name} {CAPTURE_FAILED}, {told}")
                    continue
                captured = replace(subject, name=f"{subject.name}, CUDA graph")
                captured.allocated = subject.allocated
                yield from _timings(name, kind, setting, drawn, [captured], one, None, layers, bandwidth)
        del subjects, steps
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _timings(
    name: str,
    kind: str,
    setting: Setting,
    drawn: Drawn,
    subjects: Sequence[Subject],
    times: Sequence[Sequence[float]],
    full: Sequence[float] | None,
    layers: int,
    bandwidth: float | None,
) -> Iterator[Timing]:
    # Of all layers for a step, of one for a call.
    part, filled = (drawn.layers, layers) if kind == "call" else (1, 1)
    for subject, found in zip(subjects, times, strict=False):
        ratio, low, high = compare(found, full) if full is not None else (None, None, None)
        least = least_bytes(CacheShape.of(drawn), setting.batch, subject.held) // part
        yield Timing(
            model=name,
            kind=kind,
            method=subject.name,
            batch=setting.batch,
            tokens=setting.tokens,
            capacity=setting.capacity,
            runs=len(found),
            ms=float(np.sum(found)) / (RUN * len(found)),
            ratio=ratio,
            low=low,
            high=high,
            allocated=subject.allocated // filled,
            moved=subject.moved / part,
            least=least,
            least_ms=None if bandwidth is None else 1e3 * least / bandwidth,
        )
