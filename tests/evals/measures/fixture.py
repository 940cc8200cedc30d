"""Made-up answers: one by itself, and a run of several methods over two tasks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from budgetctl.evals.harness.answer import Answer
from budgetctl.evals.measures.cells import Resampling
from budgetctl.evals.measures.shape import Cell, Section

QUICK = Resampling(resamples=200)
BUDGETS = (8, 16, 32, 64)
CLOSES = {"hard-cut": "forced", "budgetctl": "steered", "prompt": "natural"}


def make_answer(**changes: Any) -> Answer:
    """Right after 10 tokens of thought under a budget of 16."""
    base = Answer(
        task="dial",
        item="0",
        method="hard-cut",
        budget=16,
        effort=None,
        seed=0,
        level=3.0,
        correct=True,
        score=1.0,
        thinking_tokens=10,
        answer_tokens=6,
        overhead_tokens=0,
        read_tokens=0,
        close="natural",
        leaked=False,
        thinking_budget=16,
        predicted_tokens=None,
        predicted_cdf=None,
        seconds=0.5,
        kv_bytes=1024,
        thought="turn right three times",
        answer="east",
        expected="east",
        prompt="You face north.",
    )
    if "correct" in changes:
        changes.setdefault("score", float(changes["correct"]))
    if "budget" in changes:
        changes.setdefault("thinking_budget", changes["budget"])
    return replace(base, **changes)


def cell_of(section: Section, method: str, budget: int | None = None, effort: Any = None) -> Cell:
    """The one of a method and setting."""
    (found,) = (
        cell
        for cell in section["cells"]
        if (cell["method"], cell["budget"], cell["effort"]) == (method, budget, effort)
    )
    return found


def synthetic_run(questions: int = 12, seeds: tuple[int, ...] = (0, 1), seed: int = 0) -> list[Answer]:
    """Two tasks; full thinking, none, an early exit, a hard cut, a prompted budget (which overshoots), and budgetctl
    with budgets and with efforts. A question needs a natural length of thought; with less it is seldom right."""
    rng = np.random.default_rng(seed)
    found = []
    for task in ("chain", "dial"):
        for item in range(questions):
            level = 2.0 + item % 3
            for noise in seeds:
                natural = int(rng.gamma(4.0, 3.0 * level)) + 1
                about = {"task": task, "item": f"{task}-{item}", "seed": noise, "level": level}
                found += [make_answer(**about, **one) for one in _methods(rng, natural, level)]
    return found


def _methods(rng: np.random.Generator, natural: int, level: float) -> list[dict[str, Any]]:
    expected = 12.0 * level

    def one(
        method: str, budget: int | None, used: int, close: str, skill: float, **more: Any
    ) -> dict[str, Any]:
        enough = min(used / natural, 1.0)
        predicted = method in ("budgetctl", "full")
        cdf = float(np.clip(rng.normal(natural / (2 * expected), 0.05), 0.01, 0.99))
        return {
            "method": method,
            "budget": budget,
            "thinking_budget": budget,
            "thinking_tokens": used,
            "close": close,
            "correct": bool(rng.random() < 0.1 + skill * enough),
            "answer_tokens": int(rng.integers(2, 7)),
            "leaked": bool(rng.random() < 0.05),
            "seconds": float(0.01 * used + rng.random() * 0.02),
            "kv_bytes": 512 * used,
            "predicted_tokens": expected if predicted else None,
            "predicted_cdf": cdf if predicted and close == "natural" else None,
            "thought": "step " * used,
            "steered": ((0, 4), (10, 14)) if close == "steered" else (),
            **more,
        }

    rows = [
        one("full", None, natural, "natural", 0.8),
        one("no-thinking", None, 0, "none", 0.8),
        one("deer", None, max(natural - 6, 1), "early", 0.8, overhead_tokens=5, read_tokens=2 * natural,
            extra={"probes": 2}),
    ]  # fmt: skip
    for budget in BUDGETS:
        for method, skill in (("hard-cut", 0.6), ("budgetctl", 0.8), ("prompt", 0.7)):
            limit = round(budget * 1.3) if method == "prompt" else budget
            used, close = (natural, "natural") if natural <= limit else (limit, CLOSES[method])
            rows.append(one(method, budget, used, close, skill))
    for effort, share in (("low", 0.25), ("medium", 0.5), ("high", 1.0)):
        limit = max(round(2 * expected * share), 1)
        used, close = (natural, "natural") if natural <= limit else (limit, "steered")
        rows.append(one("budgetctl", None, used, close, 0.8, effort=effort, thinking_budget=limit))
    return rows
