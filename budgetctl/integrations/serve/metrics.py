"""Counters of a server in Prometheus' text format (version 0.0.4), kept without a package of their own."""

from __future__ import annotations

from collections import Counter
from threading import Lock

from budgetctl.telemetry import ThoughtReport

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: Upper bounds, in tokens, of the buckets of a thought's length.
BUCKETS = (16, 64, 256, 1024, 4096, 16384)
CLOSES = ("natural", "steered", "forced", "early", "none")


class ServerMetrics:
    """What became of the thoughts of all finished requests; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._closes: Counter[str] = Counter(dict.fromkeys(CLOSES, 0))
        self._buckets: Counter[int] = Counter()
        self._sums: Counter[str] = Counter()

    def note(self, report: ThoughtReport, prompt_tokens: int) -> None:
        """Count one finished request."""
        with self._lock:
            self._closes[report.close] += 1
            self._sums["requests"] += 1
            self._sums["prompt"] += prompt_tokens
            self._sums["thinking"] += report.thinking_tokens
            self._sums["answer"] += report.answer_tokens
            self._sums["leaked"] += report.leaked
            for bound in BUCKETS:
                self._buckets[bound] += report.thinking_tokens <= bound
            if report.thinking_budget is not None:
                self._sums["limited"] += 1
                self._sums["budget"] += report.thinking_budget
                self._sums["used"] += report.thinking_tokens
            if report.predicted_tokens is not None:
                self._sums["forecasts"] += 1
                self._sums["predicted"] += report.predicted_tokens  # type: ignore[assignment]

    def text(self) -> str:
        """All counters, as ``GET /metrics`` returns them."""
        with self._lock:
            sums, closes, buckets = Counter(self._sums), Counter(self._closes), Counter(self._buckets)
        lines: list[str] = []

        def counter(name: str, help_text: str, value: float) -> None:
            full = f"budgetctl_{name}_total"
            lines.extend([f"# HELP {full} {help_text}", f"# TYPE {full} counter", f"{full} {value:.17g}"])

        counter("prompt_tokens", "Tokens of the prompts of finished requests.", sums["prompt"])
        counter("answer_tokens", "Tokens after the thoughts.", sums["answer"])
        counter("leaked", "Requests with markers of a thought in the answer.", sums["leaked"])
        counter("limited_requests", "Requests whose thought had a budget.", sums["limited"])
        counter("budget_tokens", "Thinking budgets of those requests.", sums["budget"])
        counter("budget_used_tokens", "Thinking tokens of those requests.", sums["used"])
        counter("forecasts", "Requests whose thinking length was predicted.", sums["forecasts"])
        counter("predicted_tokens", "Predicted natural thinking lengths.", sums["predicted"])
        name = "budgetctl_closes_total"
        lines += [f"# HELP {name} Finished requests by how the thought closed.", f"# TYPE {name} counter"]
        lines += [f'{name}{{kind="{kind}"}} {count}' for kind, count in sorted(closes.items())]
        name = "budgetctl_thinking_tokens"
        lines += [f"# HELP {name} Thinking tokens of finished requests.", f"# TYPE {name} histogram"]
        lines += [f'{name}_bucket{{le="{bound}"}} {buckets[bound]}' for bound in BUCKETS]
        lines += [f'{name}_bucket{{le="+Inf"}} {sums["requests"]}']
        lines += [f"{name}_sum {sums['thinking']}", f"{name}_count {sums['requests']}"]
        return "\n".join(lines) + "\n"
