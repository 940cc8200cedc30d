"""Outcomes and capacities as tables of Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from budgetctl.simulate.capacity import Capacity
from budgetctl.simulate.outcome import Outcome


def outcome_table(outcomes: Sequence[Outcome]) -> str:
    """A row for each policy and rate; rates and tokens of the whole fleet, latencies in seconds."""
    lines = [
        "| policy | arrive/s | served/s | tokens/s | p50 s | p99 s | answer p50 s | answer p99 s | queue | rows "
        "| sent back | KV mean | KV peak |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for o in outcomes:
        served = f"{_short(o.served)} (behind)" if o.saturated else _short(o.served)
        lines.append(
            f"| {o.policy}{'' if o.lengths == 'recorded' else ' (capped)'} | {_short(o.rate)} | {served} | {o.tokens:,.0f} "
            f"| {_short(o.latency_p50)} | {_short(o.latency_p99)} | {_short(o.answer_p50)} | {_short(o.answer_p99)} "
            f"| {_short(o.queue)} | {o.rows:.1f} | {o.preemptions:.2f} | {o.kv_mean:.0%} | {o.kv_peak:.0%} |"
        )
    return "\n".join(lines)


def capacity_table(found: Sequence[Capacity]) -> str:
    """A row for each policy: the highest rate that holds, and as a multiple of the first policy's."""
    lines = [
        "| policy | requests/s at p99 ≤ limit | against the first | p99 s | rows |",
        "|---|---|---|---|---|",
    ]
    base = found[0].rate if found else 0.0
    for one in found:
        if one.outcome is None:
            lines.append(f"| {one.policy} | none | | | |")
            continue
        times = f"{one.rate / base:.2f} times" if base > 0 else ""
        lines.append(
            f"| {one.policy} | {_short(one.rate)} | {times} | {_short(one.outcome.latency_p99)} | {one.outcome.rows:.1f} |"
        )
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
