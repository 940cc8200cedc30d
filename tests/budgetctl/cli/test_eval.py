"""``budgetctl eval``: the whole command, and that whatever is wrong is said before a model is loaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from budgetctl.evals.harness.directory import RUN
from budgetctl.evals.harness.records import RECORDS, read_records

Run = Callable[..., Any]


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """What was called at the end, in place of measures and report."""
    calls: list[tuple[str, Path]] = []
    for module, function in (
        ("budgetctl.evals.measures.summary", "write_summary"),
        ("budgetctl.evals.report.page", "write_report"),
    ):
        stub = ModuleType(module)

        def note(folder: Path, name: str = function) -> None:
            calls.append((name, folder))

        setattr(stub, function, note)
        monkeypatch.setitem(sys.modules, module, stub)
    return calls


def arguments(out: Path, *more: str) -> list[str]:
    return [
        *("eval", "--task", "embedded/dial", "--n", "3", "--budgets", "4,8", "--seeds", "0,5"),
        *("--max-new-tokens", "40", "--batch-size", "2", "--out", str(out), *more),
    ]


def test_a_run_and_its_directory(run: Run, tmp_path: Path, finished: list[tuple[str, Path]]) -> None:
    result = run(*arguments(tmp_path, "--json"))
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["cells"], told["answers"], told["answered"], told["batches"]) == (10, 30, 0, 20)
    found = read_records(tmp_path / RECORDS)
    settings = [("full", None), ("hard-cut", 4), ("hard-cut", 8), ("budgetctl", 4), ("budgetctl", 8)]
    cells = {("embedded/dial", method, budget, None, seed) for method, budget in settings for seed in (0, 5)}
    assert {answer.cell for answer in found} == cells
    assert len({(answer.cell, answer.item) for answer in found}) == len(found) == 30
    for answer in found:
        assert answer.budget is None or answer.thinking_tokens <= answer.budget
    assert finished == [("write_summary", tmp_path), ("write_report", tmp_path)]
    about = json.loads((tmp_path / RUN).read_text())
    assert about["configuration"]["budgets"] == [4, 8]
    assert about["configuration"]["methods"] == ["full", "hard-cut", "budgetctl"]
    assert {"python", "torch", "transformers", "budgetctl"} <= set(about["versions"])
    assert {"git_revision", "device", "cpus", "command", "seeds", "started"} <= set(about)
    assert about["command"].startswith("budgetctl")

    # Again: nothing is left to do, and no model is needed.
    before = (tmp_path / RECORDS).read_bytes()
    again = run(*arguments(tmp_path))
    assert again.exit_code == 0
    assert "30 answers in 10 cells of embedded/dial (3 questions)" in again.stdout
    assert (tmp_path / RECORDS).read_bytes() == before
    assert len(json.loads((tmp_path / RUN).read_text())["sessions"]) == 2


def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    run: Run, tmp_path: Path, finished: list[tuple[str, Path]]
) -> None:
    fewer = ["--budgets", "8", "--seeds", "3"]
    for name in ("whole", "broken"):
        assert run(*arguments(tmp_path / name, *fewer)).exit_code == 0
    path = tmp_path / "broken" / RECORDS
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert run(*arguments(tmp_path / "broken", *fewer, "--batch-size", "3")).exit_code == 0
    timed = ("seconds", "kv_bytes")
    whole, broken = (
        sorted(
            json.dumps({k: v for k, v in answer.as_dict().items() if k not in timed})
            for answer in read_records(tmp_path / name / RECORDS)
        )
        for name in ("whole", "broken")
    )
    assert whole == broken


@pytest.mark.usefixtures("no_model")
def test_a_dry_run_says_what_would_be_run(run: Run, tmp_path: Path) -> None:
    result = run(*arguments(tmp_path / "out", "--dry-run"))
    assert result.exit_code == 0, result.stderr
    assert "30 answers in 10 cells of embedded/dial (3 questions); 0 are in" in result.stdout
    assert "20 batches are left" in result.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--methods", "full,fuller"], "unknown method 'fuller': expected one of full, hard-cut, budgetctl"),
        (["--methods", "full,full"], "'full' twice"),
        (["--methods", "full,"], "empty entry"),
        (["--methods", "full"], "--budgets given and no method takes one"),
        (["--methods", "hard-cut", "--budgets", ""], "needs --budgets and none are given"),
        (["--methods", "budgetctl-effort,hard-cut"], "needs --efforts and none are given"),
        (["--methods", "hard-cut,budgetctl-effort", "--efforts", "low"], "pass --predictor"),
        (["--methods", "hard-cut,budgetctl-effort", "--efforts", "lowish"], "unknown effort 'lowish'"),
        (["--budgets", "4,x"], "'x': expected whole numbers"),
        (["--budgets", "4,-1"], "'-1': expected whole numbers"),
        (["--budgets", "4,04"], "4 twice"),
        (["--budgets", "4,40"], "a budget of 40 with --max-new-tokens 40"),
        (["--seeds", "0,0"], "'0' twice"),
        (["--seeds", str(2**40)], "expected whole numbers from 0 to"),
        (["--greedy"], "--seeds 0,5 with --greedy"),
        (["--temperature", "0"], "pass --greedy"),
        (["--task", "embeded"], "unknown task 'embeded': expected embedded, embedded/dial"),
        (["--task", "embedded/dial"], "'embedded/dial' is given twice"),
        (["--task", "{tmp}/none.jsonl"], "no file"),
        (["--task", "{tmp}/bad.jsonl"], "bad.jsonl, line 2 is not JSON"),
        (["--task", "{tmp}/open.jsonl"], "open.jsonl, line 1 has no answer"),
        (["--predictor", "{tmp}/none"], "none"),
        (["--device", "nowhere"], "device 'nowhere' cannot be used"),
        (["--n", "0"], "--n"),
        (["--engine", "sglang"], "--engine sglang: expected transformers or vllm"),
        (["--engine-options", "{{}}"], "--engine-options without --engine vllm"),
        (["--engine", "vllm", "--engine-options", "[]"], "expected a JSON object"),
        (["--engine", "vllm", "--device", "cpu"], "choose among GPUs"),
    ],
)
def test_bad_input_is_one_line_and_no_model(run: Run, tmp_path: Path, more: list[str], said: str) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "1?", "answer": "1"}\n{\n')
    (tmp_path / "open.jsonl").write_text('{"prompt": "1?"}\n')
    result = run(*arguments(tmp_path / "out", *(text.format(tmp=tmp_path) for text in more)))
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert said in line
    assert not (tmp_path / "out").exists()


def test_a_directory_of_another_run_is_refused(
    run: Run, tmp_path: Path, finished: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["--methods", "full", "--budgets", "", "--seeds", "0"]
    assert run(*arguments(tmp_path, *small)).exit_code == 0
    from budgetctl.cli import load

    monkeypatch.setattr(load, "open_model", lambda *given: pytest.fail("a model was loaded"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    for more, said in (
        (["--seeds", "1"], "seeds=[0] and [1] is asked for"),
        (["--n", "4"], "n=3 and 4 is asked for"),
        (["--question-seed", "1"], "question_seed=0 and 1 is asked for"),
        (["--temperature", "0.5"], "temperature=1.0 and 0.5 is asked for"),
        (["--engine", "vllm"], 'engine="transformers" and "vllm" is asked for'),
    ):
        result = run(*arguments(tmp_path, *small, *more))
        assert result.exit_code == 2
        assert said in result.stderr
        assert "give another --out" in result.stderr


def test_a_run_from_before_there_were_engines_goes_on(
    run: Run, tmp_path: Path, finished: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["--methods", "full", "--budgets", "", "--seeds", "0"]
    assert run(*arguments(tmp_path, *small)).exit_code == 0
    about = json.loads((tmp_path / RUN).read_text())
    del about["configuration"]["engine"]
    (tmp_path / RUN).write_text(json.dumps(about))
    from budgetctl.cli import load

    monkeypatch.setattr(load, "open_model", lambda *given: pytest.fail("a model was loaded"))
    assert run(*arguments(tmp_path, *small)).exit_code == 0


def test_a_run_by_vllm(
    run: Run, tmp_path: Path, finished: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a fake of it; a run that was cut off goes on."""
    from budgetctl.evals.harness import vllm_opening
    from budgetctl.evals.harness.transformers_engine import TransformersEngine
    from budgetctl.evals.harness.vllm_engine import VLLMEngine
    from budgetctl.evals.load import load_model
    from budgetctl.integrations.vllm.served_model import ServedModel
    from tests.evals.harness.fake_vllm import FakeLLM, SamplingParams

    asked: list[Any] = []

    def opened(model: Any, predictor: Any, options: Any, *, temperature: float) -> VLLMEngine:
        asked.append((model, predictor, options, temperature))
        loaded = load_model(model)
        served = ServedModel(loaded.delimiters, loaded.boundaries, None, None, 512)
        return VLLMEngine(FakeLLM(TransformersEngine(loaded)), served, temperature=temperature)

    vllm = ModuleType("vllm")
    vllm.SamplingParams = SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(vllm_opening, "open_vllm", opened)
    few = ["--engine", "vllm", "--engine-options", '{"max_model_len": 512}', "--budgets", "8", "--seeds", "3"]
    assert run(*arguments(tmp_path, *few)).exit_code == 0
    ((model, *others),) = asked
    assert Path(model).is_dir()
    assert others == [None, {"max_model_len": 512}, 1.0]
    found = read_records(tmp_path / RECORDS)
    assert {answer.method for answer in found} == {"full", "hard-cut", "budgetctl"}
    assert all(answer.thinking_tokens <= 8 for answer in found if answer.budget)
    about = json.loads((tmp_path / RUN).read_text())
    assert about["configuration"]["engine"] == "vllm"
    assert about["engine_options"] == {"max_model_len": 512}
    path = tmp_path / RECORDS
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert run(*arguments(tmp_path, *few)).exit_code == 0

    def plain(answers: Any) -> list[str]:
        return sorted(json.dumps({**answer.as_dict(), "seconds": 0}) for answer in answers)

    assert plain(read_records(path)) == plain(found)
