"""What became of the requests of an engine, counted where Prometheus finds it.

The engine's processes are not those that answer HTTP. With ``PROMETHEUS_MULTIPROC_DIR`` in the environment of all of
them the counters stand in ``/metrics`` of vLLM, beside its own, by the way that ``prometheus_client`` has for that.
With ``BUDGETCTL_METRICS_PORT`` the engine's process answers ``/metrics`` there by itself. Without either nothing is
counted.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Protocol

from budgetctl.errors import BudgetctlError
from budgetctl.integrations.serve.metrics import BUCKETS, CLOSES, CONTENT_TYPE, ServerMetrics
from budgetctl.telemetry import ThoughtReport

#: A folder that the processes of a server share; prometheus_client's own name for it.
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
#: On which the engine's process answers ``/metrics``; empty or unset for not.
PORT_VARIABLE = "BUDGETCTL_METRICS_PORT"

logger = logging.getLogger("vllm.budgetctl")


class Counters(Protocol):
    """What finished requests are told to."""

    def note(self, report: ThoughtReport, prompt_tokens: int) -> None:
        """Count one finished request."""


class SharedCounters:
    """Counters of ``prometheus_client``, with the names that :class:`ServerMetrics` has."""

    def __init__(self) -> None:
        from prometheus_client import Counter, Histogram

        def counter(name: str, text: str) -> Any:
            return Counter(f"budgetctl_{name}", text)

        closes = Counter("budgetctl_closes", "Finished requests by how the thought closed.", ["kind"])
        self._closes = {kind: closes.labels(kind) for kind in CLOSES}
        self._thinking = Histogram(
            "budgetctl_thinking_tokens", "Thinking tokens of finished requests.", buckets=BUCKETS
        )
        self._prompt = counter("prompt_tokens", "Tokens of the prompts of finished requests.")
        self._answer = counter("answer_tokens", "Tokens after the thoughts.")
        self._leaked = counter("leaked", "Requests with markers of a thought in the answer.")
        self._limited = counter("limited_requests", "Requests whose thought had a budget.")
        self._budget = counter("budget_tokens", "Thinking budgets of those requests.")
        self._used = counter("budget_used_tokens", "Thinking tokens of those requests.")
        self._forecasts = counter("forecasts", "Requests whose thinking length was predicted.")
        self._predicted = counter("predicted_tokens", "Predicted natural thinking lengths.")

    def note(self, report: ThoughtReport, prompt_tokens: int) -> None:
        """Count one finished request."""
        self._closes[report.close].inc()
        self._thinking.observe(report.thinking_tokens)
        self._prompt.inc(prompt_tokens)
        self._answer.inc(report.answer_tokens)
        self._leaked.inc(report.leaked)
        if report.thinking_budget is not None:
            self._limited.inc()
            self._budget.inc(report.thinking_budget)
            self._used.inc(report.thinking_tokens)
        if report.predicted_tokens is not None:
            self._forecasts.inc()
            self._predicted.inc(report.predicted_tokens)


def listening(port: int) -> tuple[ServerMetrics, int]:
    """Counters that this process answers with at ``/metrics`` of the ``port``, 0 for any that is free; and the port."""
    metrics = ServerMetrics()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path.split("?")[0].rstrip("/") == "/metrics"
            body = metrics.text().encode() if known else b"expected /metrics\n"
            self.send_response(200 if known else 404)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Scrapes are not logged."""

    server = ThreadingHTTPServer(("", port), Handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, name="budgetctl-metrics", daemon=True).start()
    logger.info("budgetctl: metrics at port %d of the engine's process", server.server_port)
    return metrics, server.server_port


@cache
def counters_of_environment(engine: int = 0) -> tuple[Counters, ...]:
    """The counters that the environment asks for; made once a process, () for none. The ``engine`` of that number among
    those of data parallelism takes the port as many after the one that is given.

    Raises:
        BudgetctlError: for a port that is none, or that another process has.
    """
    found: list[Counters] = []
    if os.environ.get(FOLDER_VARIABLE):
        found.append(SharedCounters())
    given = os.environ.get(PORT_VARIABLE)
    if given:
        if not given.isdigit() or not 0 < int(given) < 1 << 16:
            raise BudgetctlError(
                f"{PORT_VARIABLE}={given!r}: expected the number of a port, 1 to 65535; correct it, or leave it unset"
            )
        try:
            found.append(listening(int(given) + engine)[0])
        except OSError as error:
            raise BudgetctlError(
                f"{PORT_VARIABLE}={given}: port {int(given) + engine} cannot be listened on ({error.strerror}): "
                "expected a free one; give another"
            ) from error
    return tuple(found)


def counts_here() -> bool:
    """Whether this process is the one of its tensor-parallel group that counts: all take the same decisions."""
    try:
        from vllm.distributed.parallel_state import get_tensor_model_parallel_rank

        return int(get_tensor_model_parallel_rank()) == 0
    except (ImportError, AssertionError):  # no vLLM, or a single process without groups
        return True
