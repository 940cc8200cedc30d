"""How the cost of a guided step grows: with the length of the thought, rows times candidates, and the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from budgetctl.evals.guidance_bench import GuidedRows, Timing, bench, guide, median_ms
from budgetctl.evals.guidance_subjects import Subject, logits_alone
from budgetctl.kernels.candidates import top_candidates
from budgetctl.kernels.gamma_guidance import gamma_guidance
from budgetctl.kernels.row_state import pack_rows

LENGTHS = (128, 512, 2048, 8192, 32768)
ROWS = (1, 4, 16, 64)
CANDIDATES = (16, 64)
VOCABS = (8_000, 32_000, 64_000, 128_000, 256_000)
#: Rows of the other two sweeps.
BATCH = 8


def sweep(name: str, device: torch.device, *, steps: int, seconds: float) -> Iterator[Timing]:
    """Timings along ``thinking_tokens``, ``rows`` (times candidates) or ``vocab``, on logits without a model."""
    if name == "thinking_tokens":
        subject = logits_alone(32_000, device)
        for length in LENGTHS:
            yield from bench(
                subject,
                [BATCH],
                thinking_tokens=length,
                steps=steps,
                seconds=seconds,
                only=("guidance", "controller"),
            )
    elif name == "rows":
        subject = logits_alone(32_000, device)
        for rows in ROWS:
            for k in CANDIDATES:
                yield _one(subject, "guidance, writing candidates alone", rows, k, steps, seconds)
    else:
        for vocab in VOCABS:
            subject = logits_alone(vocab, device, hidden=256)
            for method in PARTS:
                yield _one(subject, method, BATCH, 64, steps, seconds)


def _one(subject: Subject, method: str, rows: int, k: int, steps: int, seconds: float) -> Timing:
    with torch.inference_mode():
        step = PARTS[method](subject, rows, k)
        ms = median_ms(lambda i: step(), steps, subject.device, seconds)
    return Timing(subject.name, method, rows, subject.vocab, 0, k, ms, None)


def _whole(subject: Subject, rows: int, k: int) -> Callable[[], object]:
    scores = subject.logits(rows)
    guided = GuidedRows.of(torch.full((rows,), 100, device=subject.device))
    return lambda: guide(subject.forecast, scores, guided, k)


def _launch(subject: Subject, rows: int, k: int) -> Callable[[], object]:
    """The guidance function alone, candidates found, in place: only candidates and closing tokens are written."""
    scores = subject.logits(rows)
    features = subject.forecast.outlook(scores, own_logits=True).features
    top, ids = top_candidates(scores, k)
    action, left, closing = GuidedRows.of(torch.full((rows,), 100, device=subject.device))
    state = pack_rows(action, left, closing, strength=2.0)
    return lambda: gamma_guidance(
        scores, features, subject.forecast.head, top, ids, state, tail="relative", out=scores
    )


def _likeliest(subject: Subject, rows: int, k: int) -> Callable[[], object]:
    scores = subject.logits(rows)
    return lambda: top_candidates(scores, k)


PARTS: dict[str, Callable[[Subject, int, int], Callable[[], object]]] = {
    "guidance, writing the vocabulary": _whole,
    "guidance, writing candidates alone": _launch,
    "finding the candidates": _likeliest,
}
