"""The figure of ``budgetctl tune``: the objective over the trials, and accuracy against tokens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from budgetctl.evals.tuning import HeldOut, Objective, Trial, best_of, pareto


def draw_search(
    path: Path, trials: Sequence[Trial], objective: Objective, held_out: dict[str, HeldOut]
) -> None:
    """Write the figure whole or not at all.

    Args:
        path: of a PNG file.
        trials: of the search, the default first.
        objective: that was maximised.
        held_out: by name, what is shown beside the trials.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    values = [objective.value(t.accuracy, t.tokens) for t in trials]
    left.plot(values, "o", color="#8a94a3", markersize=4, label="a trial")
    left.plot(list(accumulate(values, max)), color="#2b6cb0", drawstyle="steps-post", label="best so far")
    left.set(xlabel="trial (0 is the default)", ylabel="objective on the dev questions")
    left.legend(frameon=False)
    right.plot([t.tokens for t in trials], [t.accuracy for t in trials], "o", color="#8a94a3", markersize=4)
    front = pareto(trials)
    right.plot([t.tokens for t in front], [t.accuracy for t in front], color="#2b6cb0", label="front on dev")
    best = best_of(trials, objective)
    right.plot(best.tokens, best.accuracy, "o", color="#2b6cb0", label="best on dev")
    for (name, found), colour in zip(held_out.items(), ("#c05621", "#2f855a"), strict=False):
        low, high = found.accuracy.mean - found.accuracy.low, found.accuracy.high - found.accuracy.mean
        right.errorbar(
            found.tokens,
            found.accuracy.mean,
            [[low], [high]],
            fmt="s",
            color=colour,
            label=f"{name}, held out",
        )
    right.set(xlabel="tokens a question", ylabel="accuracy")
    right.legend(frameon=False)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=130)
    os.replace(partial, path)
