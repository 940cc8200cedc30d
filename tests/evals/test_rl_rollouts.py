"""The comparison of rollout engines without the engines, which are in tests/vllm."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from budgetctl.evals import vllm_training
from budgetctl.evals.rl_rollouts import cells, outcomes
from budgetctl.training import elastic, script
from budgetctl.training.rollouts import FORCED, NATURAL


def test_errors_are_those_of_prompts() -> None:
    """Two prompts of two rollouts: their means are 2 and 4 tokens, 0.5 and 0.5, 1 and 0."""
    seen = [(1.0, 1.0, 1.0), (3.0, 0.0, 1.0), (4.0, 1.0, 0.0), (4.0, 0.0, 0.0)]
    assert cells([30.0, 10.0, 20.0], seen, 2) == "20 (10 to 30) | 4 | 3 ± 1 | 0.5 ± 0 | 0.5 ± 0.5"


def test_outcomes_are_those_of_each_rollout() -> None:
    def accuracy(prompts: Any, completions: Any, ids: list[list[int]], **columns: list[str]) -> list[float]:
        return [float(str(row[-1]) == answer) for row, answer in zip(ids, columns["answer"], strict=True)]

    def other(*arguments: Any) -> None:
        raise AssertionError("another reward was asked")

    closes = [SimpleNamespace(close=FORCED), SimpleNamespace(close=NATURAL)]
    trainer = SimpleNamespace(reward_funcs=[other, accuracy], _rollouts=closes)
    batch = [{"prompt": "1 + 1", "answer": "2"}, {"prompt": "1 + 2", "answer": "3"}]
    told = {"completion_ids": [[7, 2], [7, 4]], "thinking_tokens": [5, 6]}
    assert outcomes(trainer, batch, told) == [(5.0, 1.0, 1.0), (6.0, 0.0, 0.0)]


def test_a_script_runs_on_vllm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    inside: list[bool] = []
    ran: list[tuple[Any, list[str], bool]] = []

    @contextmanager
    def on_cpu() -> Any:
        inside.append(True)
        yield
        inside.pop()

    monkeypatch.setattr(vllm_training, "vllm_on_cpu", on_cpu)
    monkeypatch.setattr(script, "main", lambda options, words: ran.append((options, words, bool(inside))))
    vllm_training.main(["elastic", "--max_steps", "2"])
    expected = ["--max_steps", "2", "--use_vllm", "true", "--vllm_mode", "colocate"]
    assert ran == [(elastic.ElasticArguments, expected, True)]
    with pytest.raises(SystemExit):
        vllm_training.main(["sft"])
    assert "expected one of grpo, hbpo, elastic, brpo" in capsys.readouterr().err
