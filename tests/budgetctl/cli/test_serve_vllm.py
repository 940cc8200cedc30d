"""What ``budgetctl serve --engine vllm`` becomes, and what it refuses before that."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from budgetctl.cli import serve_vllm
from budgetctl.reasoner.load import PREDICTOR, WEIGHTS

Run = Callable[..., Any]


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """vLLM is there, and the process is not replaced: what it would become is kept."""
    kept: list[Any] = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.32.0")
    monkeypatch.setattr(os, "execve", lambda *call: kept.append(call))
    return kept


def test_the_embedded_reasoner(
    run: Run, become: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run("serve", "--engine", "vllm", "--port", 8123, embedded=True).exit_code == 0
    ((program, (called, *arguments), environment),) = become
    assert program == called == sys.executable
    assert arguments[:4] == ["-m", "vllm.entrypoints.cli.main", "serve", str(WEIGHTS)]
    flags = dict(zip(arguments[4::2], arguments[5::2], strict=True))
    assert flags == {
        "--logits-processors": "budgetctl.integrations.vllm:BudgetLogitsProcessor",
        "--host": "localhost",
        "--port": "8123",
        "--served-model-name": "budgetctl-reasoner",
        "--reasoning-parser": "qwen3",
        "--dtype": "float32",
    }
    assert environment["BUDGETCTL_PREDICTOR"] == str(PREDICTOR)
    (shared,) = tmp_path.iterdir()
    assert environment["PROMETHEUS_MULTIPROC_DIR"] == str(shared)


def test_options_of_vllm_are_passed_on_and_come_first(
    run: Run, become: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "mine")
    own = ["--model", WEIGHTS, "--", "--tensor-parallel-size", "2", "--reasoning-parser=mine"]
    assert run("serve", "--engine", "vllm", *own, embedded=True).exit_code == 0
    ((_, arguments, environment),) = become
    assert arguments[-3:] == ["--tensor-parallel-size", "2", "--reasoning-parser=mine"]
    assert "--reasoning-parser" not in arguments
    assert "--served-model-name" not in arguments
    assert environment["PROMETHEUS_MULTIPROC_DIR"] == "mine"
    assert environment.get("BUDGETCTL_PREDICTOR") == os.environ.get("BUDGETCTL_PREDICTOR")


def test_with_restarts_the_process_stays(
    run: Run, become: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def supervised(command: list[str], environment: dict[str, str], restarts: int, tell: Any) -> int:
        calls.append((command, environment["BUDGETCTL_PREDICTOR"], restarts))
        return 7

    monkeypatch.setattr(serve_vllm, "supervise", supervised)
    assert run("serve", "--engine", "vllm", "--restarts", "3", embedded=True).exit_code == 7
    ((command, predictor, restarts),) = calls
    assert command[:2] == [sys.executable, "-m"]
    assert "--logits-processors" in command
    assert (predictor, restarts) == (str(PREDICTOR), 3)
    assert not become


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "vllm", "--device", "cpu"], "drop it"),
        (["--engine", "vllm", "--port", "0"], "expected the number of a free port"),
        (["--engine", "vllm", "--predictor", "/no/such"], "no length predictor at /no/such"),
        (["--engine", "vllm", "--model", "/no/such"], "no tokenizer that can be loaded"),
        (["--", "--tensor-parallel-size", "2"], "expected options of vllm serve with --engine vllm alone"),
        (["--engine", "sglang"], "'sglang'"),
        (["--restarts", "2"], "--restarts 2 with the transformers engine"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(
    options: list[str], message: str, run: Run, become: list[Any]
) -> None:
    result = run("serve", *options, embedded=True)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert message in line
    assert not become


def test_vllm_under_another_name_has_no_command(
    run: Run, become: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert run("serve", "--engine", "vllm", embedded=True).exit_code == 0
    ((_, arguments, _),) = become
    assert arguments[1:5] == ["-m", "vllm.entrypoints.openai.api_server", "--model", str(WEIGHTS)]


def test_without_vllm(run: Run, become: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = run("serve", "--engine", "vllm", embedded=True)
    assert result.exit_code == 2
    assert "run pip install vllm" in result.stderr
    assert not become


def test_a_parser_is_named_only_where_one_is_known() -> None:
    known = serve_vllm.markers_of(None)
    assert serve_vllm.parser_for(known) == "qwen3"
    assert serve_vllm.parser_for(replace(known, family="deepseek")) == "deepseek_r1"
    assert serve_vllm.parser_for(replace(known, open_ids=(5, 6, 7))) is None
    assert serve_vllm.parser_for(replace(known, open_text="<|channel|>")) is None
