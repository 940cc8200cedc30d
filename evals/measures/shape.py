"""The shape of ``summary.json``: JSON values; what cannot be told is null, never NaN.

Accuracies, rates and shares lie in [0, 1], lengths are means in tokens a question, times are seconds a question. Every
list is sorted: methods by name, settings by budget, then effort, none last; points of a curve by mean total tokens.
"""

from __future__ import annotations

from typing import TypedDict


class MeanInterval(TypedDict):
    """A mean with its bootstrap interval, which resamples questions."""

    mean: float
    low: float
    high: float


class Calibration(TypedDict):
    """The length predictor at the start of the thought, against thoughts that ended by the model's own will.

    A budget hides the long ones: it is fair only where ``censored`` is close to 0.
    """

    n: int  # thoughts with a predicted probability
    censored: float  # share of predicted thoughts that ended otherwise, and are left out
    pit: list[float]  # shares of the PIT values in ten bins of equal width; 0.1 each if calibrated
    coverage: dict[str, float]  # of the central intervals "50", "80", "90" percent
    mae: float | None  # mean |predicted - actual|, tokens
    predicted: float | None  # mean predicted length, tokens
    actual: float | None  # mean length, tokens


class Level(TypedDict):
    """Questions of one difficulty."""

    level: float
    n: int
    accuracy: MeanInterval
    thinking_tokens: MeanInterval


class Cell(TypedDict):
    """One method under one setting."""

    method: str
    budget: int | None
    effort: str | float | None
    n: int  # records
    questions: int
    seeds: int
    accuracy: MeanInterval
    score: MeanInterval  # with partial credit
    tokens: MeanInterval  # thinking, answer and overhead together
    thinking_tokens: MeanInterval
    answer_tokens: MeanInterval
    overhead_tokens: MeanInterval
    read_tokens: MeanInterval
    close: dict[str, float]  # shares of natural, steered, forced, early, none; always all five
    violation: float | None  # share of thoughts over their limit; null without a limit
    overshoot: float | None  # mean of max(thinking - limit, 0) / limit
    length_error: float | None  # mean of |thinking - limit| / limit
    leak: float
    e3: float | None  # (100 accuracy)² / mean thinking and answer tokens; null where those are 0
    auc_oaa: float  # mean over thresholds 0 to 1000 of the share right with fewer thinking tokens
    token_ratio: float | None  # mean tokens / those of the base method; null without it
    seconds: MeanInterval
    tokens_per_second: float | None
    kv_bytes: MeanInterval | None
    kv_bytes_peak: int | None
    calibration: Calibration | None
    levels: list[Level]  # empty where several tasks are together, whose levels differ in meaning


class Point(TypedDict):
    """A setting on a method's curve."""

    budget: int | None
    effort: str | float | None
    tokens: float
    thinking_tokens: float
    accuracy: float
    low: float
    high: float


class Area(TypedDict):
    """Mean accuracy under a curve between two abscissae, by trapezoids, on a linear and on a logarithmic axis."""

    start: float
    stop: float
    linear: float
    log: float | None  # null where the curve starts at 0


class SharedArea(Area):
    """The same of the reference method, over the tokens that both curves span."""

    reference_linear: float
    reference_log: float | None


class Method(TypedDict):
    """One method over its settings; measures over budgets are null with fewer than two of them."""

    points: list[Point]
    area_budget: Area | None
    area_tokens: Area | None  # over its own range of mean total tokens
    area_shared: SharedArea | None  # null for the reference itself, and where the ranges do not overlap
    anytime: MeanInterval | None  # accuracy at a budget drawn uniformly from those asked for
    control: float | None  # s1: share of the budgets that the mean thought kept to
    scaling: float | None  # s1: mean slope of accuracy between two settings, per thinking token
    performance: float  # s1: best accuracy of a setting
    requested_used: float | None  # Pearson correlation of the limit and the thinking tokens, over records
    act: (
        float | None
    )  # ThinkDial's score of the efforts low, medium, high, in percent; null without them or the base
    calibration: Calibration | None


class Matched(TypedDict):
    """Against the reference method's curve at as many total tokens."""

    tokens: float  # what this setting used
    reference_tokens: (
        float  # what the mixture of the reference's two neighbours used: another value outside its curve
    )
    inside: bool  # whether the reference's curve reaches ``tokens``
    reference_accuracy: float
    pairs: int
    gain: MeanInterval  # paired, of accuracy


class Comparison(TypedDict):
    """One setting of a method against the reference method, on the same questions and seeds."""

    method: str
    budget: int | None
    effort: str | float | None
    reference: str
    pairs: int  # at the same budget and effort; 0 where the reference has none
    gain: MeanInterval | None  # of accuracy, at the same budget and effort
    token_gain: MeanInterval | None  # of total tokens, at the same budget and effort
    matched: Matched | None  # null where no pairs are left


class Section(TypedDict):
    """Some tasks together."""

    n: int
    questions: int
    cells: list[Cell]
    methods: dict[str, Method]
    comparisons: list[Comparison]  # one for each cell of each other method; empty without the reference


class Summary(TypedDict):
    """A run."""

    format: int  # 1
    n: int
    reference: str | None  # the method that others are compared with; null where the run has no such records
    base: (
        str | None
    )  # the method that ``token_ratio`` and ``act`` divide by; null where the run has no such records
    confidence: float  # of all intervals
    resamples: int
    tasks: dict[str, Section]
    overall: Section  # all questions of all tasks, each counted alike
