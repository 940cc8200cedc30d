"""A run asks each question of each cell once, on the same noise for every method, however often it was killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import pytest

from budgetctl.errors import EvalError
from budgetctl.evals.harness.config import cells, noise_seed
from budgetctl.evals.harness.directory import RUN
from budgetctl.evals.harness.lock import locked
from budgetctl.evals.harness.processes import Processes
from budgetctl.evals.harness.records import RECORDS, append_records, mend, merge_shards, read_records, shard
from budgetctl.evals.harness.run import check_tasks, pending, run
from tests.evals.harness.fake import Fake, config_of, methods, run_all, tasks_of

ROOT = Path(__file__).resolve().parents[3]
#: (method, budget) of the run of ``fake.run_all``.
SETTINGS = [("free", None), ("capped", 4), ("capped", 8)]
EXPECTED = {
    (task, method, budget, None, seed, item)
    for task, (method, budget), seed, item in product("ab", SETTINGS, (0, 1), ("q0", "q1", "q2"))
}


def keys(folder: Path) -> list[tuple[object, ...]]:
    return [(*answer.cell, answer.item) for answer in read_records(folder / RECORDS)]


def test_every_question_of_every_cell_once(tmp_path: Path) -> None:
    chosen = run_all(tmp_path)
    assert Counter(keys(tmp_path)) == Counter(EXPECTED)
    assert chosen[0].calls == [["q0", "q1"], ["q2"]] * 4  # 2 tasks, 2 seeds
    assert len(chosen[1].calls) == 16
    again = run_all(tmp_path)
    assert [method.calls for method in again] == [[], []]


def test_noise_is_that_of_seed_and_question_for_every_method(tmp_path: Path) -> None:
    run_all(tmp_path)
    noise: dict[tuple[object, ...], set[str]] = {}
    for answer in read_records(tmp_path / RECORDS):
        noise.setdefault((answer.task, answer.seed, answer.item), set()).add(answer.thought)
    assert all(len(seen) == 1 for seen in noise.values())
    assert len({min(seen) for seen in noise.values()}) == 6  # 2 seeds, 3 questions
    assert len({noise_seed(seed, place) for seed in (0, 1, 2**40 - 1) for place in (0, 1, 2**20 - 1)}) == 9
    assert noise_seed(2**40 - 1, 2**20 - 1) < 2**63


def test_greedy_runs_have_no_noise(tmp_path: Path) -> None:
    run_all(tmp_path, seeds=(-1,))
    found = read_records(tmp_path / RECORDS)
    assert {answer.seed for answer in found} == {-1}
    assert {answer.thought for answer in found} == {"-1"}
    assert len(found) == 18


def test_a_kill_at_any_byte_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)  # the disk is not what is tested
    small: dict = {"questions": 2, "names": "a", "budgets": (4,), "seeds": (0,)}
    run_all(tmp_path, **small)
    path = tmp_path / RECORDS
    whole = path.read_bytes()
    lines = whole.split(b"\n")[:-1]
    assert len(lines) == 4
    ends = [at for at, byte in enumerate(whole) if byte == ord("\n")]
    tasks = tasks_of(2, "a")
    asked = cells(config_of(tasks, budgets=(4,), seeds=(0,)), list(tasks), methods())
    for size in range(len(whole) + 1):
        kept = sum(end < size for end in ends)
        path.write_bytes(whole[:size])
        mend(path)
        assert path.read_bytes() == whole[: ends[kept - 1] + 1 if kept else 0], size
        assert sum(len(batch.places) for batch in pending(tasks, asked, read_records(path), 2)) == 4 - kept
        # All that a session does besides, at some of the places.
        if size % 97 == 0 or size - 1 in ends or size in ends:
            path.write_bytes(whole[:size])
            chosen = run_all(tmp_path, **small)
            assert sorted(path.read_bytes().split(b"\n")[:-1]) == sorted(lines), size
            assert sum(len(call) for method in chosen for call in method.calls) == 4 - kept


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_twenty_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    killed = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "tests.evals.harness.killed_run",
            str(tmp_path / "run"),
            "20",
            "0",
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == 0, killed.stderr[-3000:]
    assert int(killed.stdout) >= 15
    found = Counter(keys(tmp_path / "run"))
    assert len(found) == 2 * 3 * 2 * 60
    assert set(found.values()) == {1}
    # A process that was killed leaves neither a lock nor a half of run.json behind.
    sessions = json.loads((tmp_path / "run" / RUN).read_text())["sessions"]
    assert len(sessions) >= int(killed.stdout) // 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"budgets": (4, 9)}, r"budgets=\[4, 8\] and \[4, 9\]"),
        ({"seeds": (0,)}, "seeds="),
        ({"model": "other"}, 'model="none" and "other"'),
        ({"max_new_tokens": 17}, "max_new_tokens=16 and 17"),
        ({"questions": 4}, "questions="),
    ],
)
def test_a_run_of_another_configuration_is_refused(tmp_path: Path, change: dict, said: str) -> None:
    run_all(tmp_path)
    before = (tmp_path / RECORDS).read_bytes()
    with pytest.raises(EvalError, match=said):
        run_all(tmp_path, **change)
    assert (tmp_path / RECORDS).read_bytes() == before


def test_records_without_their_run_are_refused(tmp_path: Path) -> None:
    run_all(tmp_path)
    (tmp_path / RUN).unlink()
    with pytest.raises(EvalError, match=r"records and no run\.json"):
        run_all(tmp_path)
    (tmp_path / RUN).write_text("{")
    with pytest.raises(EvalError, match="cannot be read"):
        run_all(tmp_path)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(EvalError, match="in use by another process"):
        run_all(tmp_path)
    run_all(tmp_path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "line 3 is no record"),
        (b"[]", "line 3 is no record .a JSON list"),
        (b'{"task": "a"}', "line 3 is no record .a record differs in"),
        (b"\xff", "line 3 is no record"),
    ],
)
def test_a_bad_line_in_the_middle_is_named(tmp_path: Path, line: bytes, said: str) -> None:
    run_all(tmp_path)
    path = tmp_path / RECORDS
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], line, *lines[3:]]))
    with pytest.raises(EvalError, match=said):
        run_all(tmp_path)


def test_records_that_are_not_of_the_run_are_named(tmp_path: Path) -> None:
    run_all(tmp_path)
    tasks = tasks_of(3)
    asked = cells(config_of(tasks), list(tasks), methods())
    kept = read_records(tmp_path / RECORDS)
    assert pending(tasks, asked, kept, 2) == []
    with pytest.raises(EvalError, match=r"line 37 has item 'q0' of .* once more"):
        pending(tasks, asked, [*kept, kept[0]], 2)
    with pytest.raises(EvalError, match=r"line 1 has .*which is not asked"):
        pending(tasks, asked[1:], kept, 2)


def test_a_method_that_answers_something_else_is_refused(tmp_path: Path) -> None:
    class Reversed(Fake):
        def answer(self, *arguments, **options):  # type: ignore[no-untyped-def]
            return super().answer(*arguments, **options)[::-1]

    tasks = tasks_of(3)
    with pytest.raises(EvalError, match="one answer an item, in order"):
        run(config_of(tasks), tasks, [Reversed("free", "none"), methods()[1]], object, tmp_path)
    assert not (tmp_path / RECORDS).exists()


def test_budgets_and_methods_have_to_fit() -> None:
    tasks = tasks_of(1)
    with pytest.raises(EvalError, match="'capped' needs --budgets and none are given"):
        cells(config_of(tasks, budgets=()), list(tasks), methods())
    with pytest.raises(EvalError, match="--efforts given and no method takes one"):
        cells(config_of(tasks, efforts=("low",)), list(tasks), methods())


def test_questions_can_be_told_apart() -> None:
    tasks = tasks_of(2)
    with pytest.raises(EvalError, match="'q0' twice"):
        check_tasks({"a": [tasks["a"][0]] * 2})
    with pytest.raises(EvalError, match="0 questions"):
        check_tasks({"a": []})


def test_processes_share_every_batch_once() -> None:
    batches = list(range(11))
    for count in (1, 2, 3, 16):
        shares = [Processes(rank, count).share(batches) for rank in range(count)]
        assert sorted(batch for share in shares for batch in share) == batches
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_shards_are_merged_once(tmp_path: Path) -> None:
    run_all(tmp_path)
    answers = read_records(tmp_path / RECORDS)
    (tmp_path / RECORDS).unlink()
    append_records(tmp_path / RECORDS, answers[:10])
    append_records(tmp_path / shard(0), answers[8:20])  # killed while they were merged
    append_records(tmp_path / shard(1), answers[20:])
    (tmp_path / shard(2)).write_bytes(b'{"task": "a", "it')  # a torn line
    merge_shards(tmp_path)
    assert read_records(tmp_path / RECORDS) == answers
    assert sorted(path.name for path in tmp_path.iterdir()) == [RECORDS, RUN, "run.lock"]


@pytest.mark.slow
def test_two_processes_answer_what_one_does(tmp_path: Path) -> None:
    run_all(tmp_path / "one")
    code = (
        "import sys; from pathlib import Path; from tests.evals.harness.fake import *\n"
        "from budgetctl.evals.harness.processes import Processes\n"
        "tasks = tasks_of(3)\n"
        "run(config_of(tasks), tasks, methods(), object, Path(sys.argv[1]), batch_size=2, processes=Processes.here())\n"
    )
    script = tmp_path / "two.py"
    script.write_text(code)
    launch = ["--multi_gpu", "--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no"]
    launch += ["--dynamo_backend", "no", "--num_processes", "2", str(script), str(tmp_path / "two")]
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *launch],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (read_records(tmp_path / name / RECORDS) for name in ("one", "two"))
    assert sorted(a.as_dict().items().__repr__() for a in two) == sorted(
        a.as_dict().items().__repr__() for a in one
    )
    assert not list((tmp_path / "two").glob("records-*.jsonl"))
