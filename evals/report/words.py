"""What an interval allows to be said."""

from __future__ import annotations

from collections.abc import Sequence

from budgetctl.evals.measures.shape import Comparison, Matched, MeanInterval, Section


def points(interval: MeanInterval) -> str:
    """A difference of accuracies with its interval, in percentage points."""
    mean, low, high = (100 * interval[key] for key in ("mean", "low", "high"))
    return f"{signed(mean)} [{signed(low)}, {signed(high)}]"


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, and a real minus; nothing is shown as -0."""
    text = f"{value:+.{digits}f}"
    if float(text) == 0:
        text = f"{0:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def verdict(interval: MeanInterval | None, name: str, other: str) -> str:
    """Which of two is right more often, or that these questions do not tell."""
    if interval is None:
        return "no questions in common"
    if interval["low"] > 0:
        return f"{name} is right more often"
    if interval["high"] < 0:
        return f"{other} is right more often"
    if interval["low"] == interval["high"] == 0:
        return "the same answers right"
    return "not told apart by these questions"


def matched_sentences(section: Section, reference: str, confidence: float) -> list[str]:
    """One sentence a method: at how many of its settings it does better or worse than the reference's curve; and one for all
    that cannot be compared."""
    told: dict[str, list[Comparison]] = {}
    for comparison in section["comparisons"]:
        told.setdefault(comparison["method"], []).append(comparison)
    sentences, apart = [], []
    for method, rows in told.items():
        inside = [row["matched"] for row in rows if row["matched"] is not None and row["matched"]["inside"]]
        if inside:
            sentences.append(_sentence(method, inside, len(rows) - len(inside), reference, confidence))
        else:
            apart.append(method)
    if apart:
        verb = "uses" if len(apart) == 1 else "use"
        sentences.append(
            f"{', '.join(apart)} {verb} fewer or more tokens than {reference} was measured at: not compared here."
        )
    return sentences


def _sentence(method: str, inside: Sequence[Matched], outside: int, reference: str, confidence: float) -> str:
    above = sum(one["gain"]["low"] > 0 for one in inside)
    below = sum(one["gain"]["high"] < 0 for one in inside)
    open_ = len(inside) - above - below
    least, most = (pick(one["gain"]["mean"] for one in inside) for pick in (min, max))
    found = f"{signed(100 * least)} points"
    if len(inside) > 1:
        found = f"between {signed(100 * least)} and {signed(100 * most)} points"
    verb = "setting uses" if outside == 1 else "settings use"
    left = f" {outside} more {verb} fewer or more tokens than {reference} was measured at." if outside else ""
    settings = "setting" if len(inside) == 1 else "settings"
    return (
        f"{method} against {reference} at equal tokens, {len(inside)} {settings}: better at {above}, worse at "
        f"{below}, not told apart at {open_} ({100 * confidence:g} % intervals); differences in accuracy {found}.{left}"
    )


def caution(comparisons: int, confidence: float) -> str:
    """What many intervals mean together."""
    expected = comparisons * (1 - confidence)
    return (
        f"Intervals are paired bootstraps over questions, {100 * confidence:g} % each, and not corrected for their number: "
        f"of {comparisons} comparisons between equals, about {expected:.1f} would be called different all the same. "
        "They speak of these questions and this model alone."
    )
