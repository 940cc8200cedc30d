"""What came out of one simulation: throughput, latency, queue, preemptions, KV use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from budgetctl.simulate.replica import Replica
from budgetctl.simulate.workload import Progress, Workload

#: A fleet that serves less than this share of what arrives falls behind.
KEEPING_UP = 0.95


@dataclass(frozen=True)
class Outcome:
    """Of one policy at one rate; seconds, tokens, and rates of the whole fleet.

    Args:
        policy: its name.
        lengths: ``recorded``, or ``capped`` where lengths under the budget were cut from those without.
        rate: requests per second that arrive.
        served: requests per second that finish, among those that arrive after the warm-up and until the last arrival.
        tokens: generated tokens per second of those.
        latency_p50: from arrival to the last token; median, over the requests after the warm-up.
        latency_p99: their 99th percentile.
        answer_p50: from arrival to the first token of the answer.
        answer_p99: its 99th percentile.
        queue: requests that wait in the queue of one replica, mean over time.
        rows: rows of a step, mean over the busy time.
        preemptions: how often a request was sent back, mean.
        kv_mean: share of the pool's tokens that are held, mean over the busy time.
        kv_peak: share of the blocks in use at the fullest moment of any replica.
        saturated: fewer than 95 % as many finish as arrive, so that queues, and with them latencies, grow for as long
            as requests come.
        requests: simulated requests that the numbers are of.
    """

    policy: str
    lengths: str
    rate: float
    served: float
    tokens: float
    latency_p50: float
    latency_p99: float
    answer_p50: float
    answer_p99: float
    queue: float
    rows: float
    preemptions: float
    kv_mean: float
    kv_peak: float
    saturated: bool
    requests: int

    def as_dict(self) -> dict[str, object]:
        """JSON values."""
        return asdict(self)


def measure(
    policy: str,
    lengths: str,
    rate: float,
    share: float,
    workload: Workload,
    progress: Progress,
    replicas: Sequence[Replica],
    warm_up: float,
) -> Outcome:
    """Numbers of finished requests.

    Args:
        policy: name for the outcome.
        lengths: ``recorded`` or ``capped``.
        rate: requests per second of the fleet.
        share: of the fleet's replicas that were simulated.
        workload: the requests.
        progress: what became of them, all finished.
        replicas: that were simulated.
        warm_up: share of the requests, from the first, that are left out.
    """
    arrival, finish = workload.arrival, progress.finish
    first = int(len(workload) * warm_up)
    kept = slice(first, None)
    begin, end = float(arrival[first]), float(arrival[-1])
    inside = (finish > begin) & (finish <= end)
    duration = end - begin
    tokens = float(workload.written[inside].sum())
    span = duration if duration > 0 else float(finish.max() - arrival[0])
    if not duration > 0:  # everything came at once
        inside, tokens = np.ones_like(inside), float(workload.written.sum())
    served = float(inside.sum()) / span / share
    latency = (finish - arrival)[kept]
    answer = (progress.first_answer - arrival)[kept]
    busy = sum(replica.busy for replica in replicas)
    shape = replicas[0].shape
    whole = float(finish.max() - arrival[0])
    return Outcome(
        policy=policy,
        lengths=lengths,
        rate=rate,
        served=served,
        tokens=tokens / span / share,
        latency_p50=float(np.percentile(latency, 50)),
        latency_p99=float(np.percentile(latency, 99)),
        answer_p50=float(np.percentile(answer, 50)),
        answer_p99=float(np.percentile(answer, 99)),
        queue=float(progress.waited.sum()) / whole / len(replicas),
        rows=sum(replica.row_seconds for replica in replicas) / busy,
        preemptions=float(progress.preemptions.mean()),
        kv_mean=sum(r.kv_seconds for r in replicas) / busy / (shape.blocks * shape.block_size),
        kv_peak=1 - min(replica.least_free for replica in replicas) / shape.blocks,
        saturated=float(inside.sum()) < KEEPING_UP * (len(workload) - first),
        requests=len(workload) - first,
    )
