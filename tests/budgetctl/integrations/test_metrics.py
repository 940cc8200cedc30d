"""The counters of the server, read back by Prometheus' rules for its text format."""

from __future__ import annotations

import re

from fastapi.testclient import TestClient

from budgetctl.integrations.serve.app import build_app
from budgetctl.integrations.serve.metrics import ServerMetrics
from budgetctl.telemetry import ThoughtReport

_SAMPLE = re.compile(r'^([a-z_]+)(?:\{([a-z]+)="([^"]*)"\})? ([0-9.e+]+)$')


def parsed(text: str) -> dict[tuple[str, str | None], float]:
    """Samples by (name, value of their label); every one has to follow a TYPE of its family."""
    assert text.endswith("\n")
    values: dict[tuple[str, str | None], float] = {}
    families: list[str] = []
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert kind in ("counter", "histogram")
            assert name not in families
            families.append(name)
        elif not line.startswith("# HELP "):
            found = _SAMPLE.match(line)
            assert found is not None, line
            assert found[1].startswith(families[-1])
            assert (found[1], found[3]) not in values
            values[found[1], found[3]] = float(found[4])
    return values


def test_counts_of_what_became_of_the_thoughts() -> None:
    metrics = ServerMetrics()
    metrics.note(ThoughtReport(20, 5, 32, 41.5, "steered", False, 1.0), 10)
    metrics.note(ThoughtReport(300, 7, None, None, "natural", True), 11)
    metrics.note(ThoughtReport(16, 2, 16, 10.0, "forced", False), 12)
    values = parsed(metrics.text())
    assert values["budgetctl_closes_total", "steered"] == 1
    assert values["budgetctl_closes_total", "forced"] == 1
    assert values["budgetctl_closes_total", "none"] == 0
    assert values["budgetctl_prompt_tokens_total", None] == 33
    assert values["budgetctl_answer_tokens_total", None] == 14
    assert values["budgetctl_predicted_tokens_total", None] == 51.5
    assert values["budgetctl_forecasts_total", None] == 2
    assert values["budgetctl_budget_tokens_total", None] == 48
    assert values["budgetctl_budget_used_tokens_total", None] == 36
    assert values["budgetctl_leaked_total", None] == 1
    buckets = [
        values["budgetctl_thinking_tokens_bucket", bound] for bound in ("16", "64", "256", "1024", "+Inf")
    ]
    assert buckets == [1, 2, 2, 3, 3]
    assert values["budgetctl_thinking_tokens_sum", None] == 336
    assert values["budgetctl_thinking_tokens_count", None] == 3


def test_the_server_shows_them() -> None:
    class Idle:
        """An engine that is asked nothing."""

        name, alive = "idle", True

        def start(self) -> None: ...

        def stop(self) -> None: ...

    with TestClient(build_app(Idle())) as client:  # type: ignore[arg-type]
        reply = client.get("/metrics")
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert parsed(reply.text)["budgetctl_closes_total", "natural"] == 0
