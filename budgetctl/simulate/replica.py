"""One replica: continuous batching with prompts in chunks, blocks from a pool, preemption by recomputing.

The rules are those of vLLM's scheduler (first come, first served): at each step the running rows come first, in the
order of their admission; a row that finds no free block sends back the latest row, itself in the end, which loses its
blocks and is read again later, its generated tokens as part of the prompt; then waiting requests are admitted, unless
a row was sent back, while rows, tokens and blocks for all of their tokens are there.

Steps in which all rows decode and nothing can be admitted are taken many at once: their number until something
happens, and their time, have closed forms.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from budgetctl.errors import BudgetctlError
from budgetctl.simulate.step_time import ReplicaShape, StepTime
from budgetctl.simulate.workload import Progress, Workload

#: Stands for no KV budget.
NO_SLOTS = 1 << 60


class Replica:
    """Runs the requests that are submitted to it; writes into a :class:`Progress` that replicas may share.

    Raises:
        BudgetctlError: when a request of the workload would never fit into the pool.
    """

    def __init__(
        self, shape: ReplicaShape, step: StepTime, workload: Workload, progress: Progress | None = None
    ) -> None:
        self.shape, self.step, self.workload = shape, step, workload
        self.progress = Progress(workload) if progress is None else progress
        self.slots = NO_SLOTS if workload.slots is None else workload.slots
        self._total = workload.written
        longest = int(np.minimum(workload.prompt + self._total, self.slots).max())
        if self._blocks_of(longest) > shape.blocks:
            raise BudgetctlError(
                f"a request of {longest} tokens needs {self._blocks_of(longest)} blocks of {shape.block_size}, the pool "
                f"has {shape.blocks}: expected a pool that holds the longest request; give more blocks, or a budget"
            )
        self.clock = 0.0
        self.free = shape.blocks
        #: Free blocks at the fullest moment.
        self.least_free = shape.blocks
        #: Sums over steps, in seconds: of the time, of rows · time, of KV tokens held · time.
        self.busy = self.row_seconds = self.kv_seconds = 0.0
        self.steps = 0
        self._waiting: deque[int] = deque()
        self._running = np.zeros(0, np.int64)
        self._partial: int | None = None  # the row whose prompt is read in chunks; always the last

    @property
    def load(self) -> int:
        """Requests that wait or run."""
        return len(self._waiting) + len(self._running)

    def submit(self, request: int, time: float) -> None:
        """Queue a request of the workload that arrives at ``time``; call :meth:`advance` up to there before."""
        if not self.load:
            self.clock = max(self.clock, time)
        self.progress.since[request] = time
        self._waiting.append(request)

    def advance(self, until: float = math.inf) -> None:
        """Run every step that begins before ``until``, or until nothing is left."""
        while self.load and self.clock < until:
            count = self._decodable(until)
            if count:
                self._decode(count)
            else:
                self._one_step()

    def _blocks_of(self, tokens: int) -> int:
        return -(-min(tokens, self.slots) // self.shape.block_size)

    def _known(self, request: int) -> int:
        """Tokens of prompt and generation so far."""
        return int(self.workload.prompt[request] + self.progress.generated[request])

    # Many steps at once

    def _decodable(self, until: float) -> int:
        """Number of steps from here on in which every row decodes and nothing else happens; 0 when the next step has
        to be looked at closely."""
        running = self._running
        if self._partial is not None or not len(running):
            return 0
        if (
            self._waiting
            and len(running) < self.shape.max_rows
            and self._blocks_of(self._known(self._waiting[0])) <= self.free
        ):
            return 0
        progress = self.progress
        count = int((self._total[running] - progress.generated[running]).min())
        held = np.minimum(progress.computed[running], self.slots)
        growing = held[held < self.slots]
        if len(growing) and self.slots < NO_SLOTS:
            count = min(count, int(self.slots - growing.max()))
        if len(growing) and self._fresh(growing, count) > self.free:
            low, high = 0, count
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if self._fresh(growing, middle) <= self.free else (low, middle)
            count = low
        if count and until < math.inf:
            count = min(count, self._steps_within(until - self.clock, int(held.sum()), len(growing)))
        return count

    def _fresh(self, held: np.ndarray, count: int) -> int:
        """Blocks that rows with ``held`` tokens take in ``count`` more steps."""
        size = self.shape.block_size
        return int((-(-(held + count) // size) + (-held // size)).sum())

    def _seconds(self, count: float | np.ndarray, held: int, growing: int) -> float | np.ndarray:
        """Of ``count`` decode steps, with ``held`` KV tokens before the first and ``growing`` rows that add one each."""
        each = self.step.base + self.step.row * len(self._running)
        return count * each + self.step.kv_token * (count * held + growing * (count * (count + 1) / 2))

    def _steps_within(self, seconds: float, held: int, growing: int) -> int:
        """The fewest steps that take at least ``seconds``."""
        kv = self.step.kv_token
        square = kv * growing / 2
        line = self.step.base + self.step.row * len(self._running) + kv * held + square
        root = 2 * seconds / (line + math.sqrt(line * line + 4 * square * seconds))
        count = max(1, math.ceil(root))
        while self._seconds(count, held, growing) < seconds:
            count += 1
        while count > 1 and self._seconds(count - 1, held, growing) >= seconds:
            count -= 1
        return count

    def _decode(self, count: int) -> None:
        running, progress = self._running, self.progress
        held = np.minimum(progress.computed[running], self.slots)
        grown = held < self.slots
        total, growing = int(held.sum()), int(grown.sum())
        generated = progress.generated[running]
        ahead = self.workload.thinking[running] + 1 - generated
        begins = (ahead >= 1) & (ahead <= count)
        if begins.any():
            progress.first_answer[running[begins]] = self.clock + self._seconds(ahead[begins], total, growing)
        seconds = float(self._seconds(count, total, growing))
        # sums over the steps of KV held, and of its square, since a step's time grows with what is held
        first = count * total + growing * (count * (count + 1) / 2)
        second = (
            count * total**2
            + total * growing * count * (count + 1)
            + growing**2 * (count * (count + 1) * (2 * count + 1) / 6)
        )
        each = self.step.base + self.step.row * len(running)
        self._account(count, seconds, len(running), each * first + self.step.kv_token * second)
        progress.computed[running] += count
        progress.generated[running] += count
        if growing:
            size = self.shape.block_size
            after = -(-np.minimum(progress.computed[running], self.slots) // size)
            self.free -= int((after - progress.blocks[running]).sum())
            progress.blocks[running] = after
            self.least_free = min(self.least_free, self.free)
        self._retire()

    # One step, whatever happens in it

    def _one_step(self) -> None:
        progress, step = self.progress, self.step
        decoding, sent_back = self._make_room()
        room = self.shape.max_batch_tokens - len(decoding)
        reading: list[tuple[int, int]] = []  # rows that read their prompt, and tokens of it
        if self._partial is not None:
            row = self._partial
            reading.append((row, min(self._known(row) - int(progress.computed[row]), room)))
            room -= reading[0][1]
        while (
            self._waiting
            and not sent_back
            and len(decoding) + len(reading) < self.shape.max_rows
            and room
            and (want := self._blocks_of(self._known(self._waiting[0]))) <= self.free
        ):
            row = self._waiting.popleft()
            progress.waited[row] += self.clock - progress.since[row]
            progress.blocks[row] = want
            self.free -= want
            reading.append((row, min(self._known(row), room)))
            room -= reading[-1][1]
        self.least_free = min(self.least_free, self.free)
        progress.computed[decoding] += 1
        for row, tokens in reading:
            progress.computed[row] += tokens
        rows = np.concatenate([decoding, np.asarray([row for row, _ in reading], np.int64)])
        kv = int(np.minimum(progress.computed[rows], self.slots).sum())
        seconds = step.base + step.row * len(rows) + step.kv_token * kv
        if reading:
            seconds += step.prefill_base + step.prefill_token * sum(tokens for _, tokens in reading)
        self._account(1, seconds, len(rows), kv * seconds)
        self._running = rows
        self._partial = None
        for row, _ in reading:
            if progress.computed[row] < self._known(row):
                self._partial = row  # no tokens were left in this step, so it is the last
            else:
                decoding = np.append(decoding, row)
        progress.generated[decoding] += 1
        progress.first_token[decoding[progress.generated[decoding] == 1]] = self.clock
        begins = progress.generated[decoding] == self.workload.thinking[decoding] + 1
        progress.first_answer[decoding[begins]] = self.clock
        self._retire()

    def _make_room(self) -> tuple[np.ndarray, bool]:
        """A block for every row that decodes and needs one; the rows that go on decoding, and whether any was sent back."""
        progress = self.progress
        rows = self._running[:-1] if self._partial is not None else self._running
        size = self.shape.block_size
        wants = -(-np.minimum(progress.computed[rows] + 1, self.slots) // size) - progress.blocks[rows]
        if int(wants.sum()) <= self.free:
            progress.blocks[rows] += wants
            self.free -= int(wants.sum())
            return rows, False
        left = self._running.tolist()
        for at, (row, want) in enumerate(zip(rows.tolist(), wants.tolist(), strict=True)):
            while want > self.free and at < len(left):
                self._send_back(left.pop())
            if at >= len(left):
                break
            progress.blocks[row] += want
            self.free -= want
        kept = [row for row in left if row != self._partial]
        return np.asarray(kept, np.int64), True

    def _send_back(self, row: int) -> None:
        progress = self.progress
        if row == self._partial:
            self._partial = None
        self.free += int(progress.blocks[row])
        progress.blocks[row] = progress.computed[row] = 0
        progress.preemptions[row] += 1
        progress.since[row] = self.clock
        self._waiting.appendleft(row)

    def _account(self, steps: int, seconds: float, rows: int, kv_seconds: float) -> None:
        self.clock += seconds
        self.busy += seconds
        self.steps += steps
        self.row_seconds += rows * seconds
        self.kv_seconds += kv_seconds

    def _retire(self) -> None:
        running, progress = self._running, self.progress
        over = progress.generated[running] >= self._total[running]
        if over.any():
            done = running[over]
            progress.finish[done] = self.clock
            self.free += int(progress.blocks[done].sum())
            progress.blocks[done] = 0
            self._running = running[~over]
