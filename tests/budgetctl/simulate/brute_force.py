"""The scheduler once more, one step and one token at a time, with nothing but lists: what the replica has to equal."""

from __future__ import annotations

from dataclasses import dataclass, field

from budgetctl.simulate.step_time import ReplicaShape, StepTime


@dataclass
class Job:
    """One request."""

    arrival: float
    prompt: int
    thinking: int
    answer: int
    read: int = 0
    written: int = 0
    blocks: int = 0
    reading: bool = True
    sent_back: int = 0
    first_answer: float = -1.0
    finish: float = -1.0


@dataclass
class Trace:
    """What happened."""

    jobs: list[Job]
    held: list[int] = field(default_factory=list)


def run(jobs: list[Job], shape: ReplicaShape, step: StepTime, slots: int | None) -> Trace:
    """All jobs, in the order of their arrival, to the end."""
    clock, pool = 0.0, shape.blocks
    coming, queue, running = list(jobs), [], []
    trace = Trace(jobs)

    def blocks_for(tokens: int) -> int:
        kept = tokens if slots is None else min(tokens, slots)
        return (kept + shape.block_size - 1) // shape.block_size

    while coming or queue or running:
        if not queue and not running:
            clock = max(clock, coming[0].arrival)
        while coming and coming[0].arrival <= clock:
            queue.append(coming.pop(0))
        room, work, evicted = shape.max_batch_tokens, [], False
        for job in list(running):
            if job not in running:
                continue
            known = job.prompt + job.written
            # a row gets the blocks of its whole prompt when it is admitted, and one at a time later
            missing = 0 if job.reading else blocks_for(job.read + 1) - job.blocks
            while missing > pool and job in running:
                victim = running.pop()
                pool += victim.blocks
                victim.blocks = victim.read = 0
                victim.sent_back += 1
                victim.reading = True
                queue.insert(0, victim)
                evicted = True
            if job not in running:
                continue
            pool, job.blocks = pool - missing, job.blocks + missing
            tokens = min(known - job.read, room)
            work.append((job, tokens, job.reading))
            room -= tokens
        while queue and not evicted and room > 0 and len(running) < shape.max_rows:
            job = queue[0]
            known = job.prompt + job.written
            if blocks_for(known) > pool:
                break
            queue.pop(0)
            running.append(job)
            pool, job.blocks = pool - blocks_for(known), blocks_for(known)
            tokens = min(known, room)
            work.append((job, tokens, True))
            room -= tokens
        assert pool >= 0
        seconds, prompt = step.base, 0
        for job, tokens, reads_prompt in work:
            job.read += tokens
            kept = job.read if slots is None else min(job.read, slots)
            seconds += step.row + step.kv_token * kept
            prompt += tokens if reads_prompt else 0
        if prompt:
            seconds += step.prefill_base + step.prefill_token * prompt
        clock += seconds
        trace.held.append(shape.blocks - pool)
        for job, _, _ in work:
            if job.read == job.prompt + job.written:
                job.written += 1
                job.reading = False
                if job.written == job.thinking + 1:
                    job.first_answer = clock
                if job.written == job.thinking + job.answer:
                    job.finish = clock
                    pool += job.blocks
                    running.remove(job)
    return trace
