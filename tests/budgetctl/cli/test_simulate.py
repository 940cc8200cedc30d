"""``budgetctl simulate``: results, files and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
QUICK = ("--thinking", "12,3", "--requests", "100", "--prompt-tokens", "16", "--answer-tokens", "8")


def test_results_go_to_json_and_a_file_and_a_plot(run: Run, tmp_path: Path) -> None:
    png, file = tmp_path / "plot.png", tmp_path / "result.json"
    policies = ("--policy", "none", "--policy", "budgetctl:30+kv:64")
    options = ("--rate", "5,50", "--p99", "100", "--replicas", "100", "--png", str(png), "--out", str(file))
    result = run("simulate", *QUICK, *policies, *options, "--json", embedded=True)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found == json.loads(file.read_text())
    assert [(o["policy"], o["rate"]) for o in found["outcomes"]] == [
        (name, rate) for name in ("none", "budgetctl:30+kv:64") for rate in (5.0, 50.0)
    ]
    assert found["simulated_replicas"] == 4
    assert [c["policy"] for c in found["capacities"]] == ["none", "budgetctl:30+kv:64"]
    assert all(c["outcome"]["latency_p99"] <= 100 for c in found["capacities"])
    assert found["outcomes"][2]["lengths"] == "capped"
    assert png.read_bytes()[:4] == b"\x89PNG"
    assert not list(tmp_path.glob("*.partial"))


def test_a_table_says_what_was_simulated(run: Run, tmp_path: Path) -> None:
    step = tmp_path / "step.json"
    step.write_text('{"step_time": {"base": 0.01, "row": 0.001}}')
    options = ("--step-time", str(step), "--replicas", "10000", "--out", str(tmp_path / "r.json"))
    result = run("simulate", *QUICK, *options, "--router", "least-loaded", embedded=True)
    assert result.exit_code == 0, result.stderr
    assert "10,000 replicas, 4 of them simulated" in result.stdout
    assert result.stdout.count("| none |") == 6


def test_a_step_under_budgetctl_takes_the_time_that_is_told_for_it(run: Run, tmp_path: Path) -> None:
    plain, slow = {"base": 0.01, "row": 0.001}, {"base": 0.02, "row": 0.004}
    step = tmp_path / "serving_check.json"
    step.write_text(
        json.dumps({"engine": "vllm", "step_times": {"none": plain, "budgetctl": slow}, "runs": []})
    )
    policies = ("--policy", "hard-cut:20", "--policy", "budgetctl:20")

    def rates(told: str) -> list[tuple[float, float]]:
        options = ("--rate", "2,9", "--step-time", told, "--out", str(tmp_path / "r.json"), "--json")
        result = run("simulate", *QUICK, *policies, *options, embedded=True)
        assert result.exit_code == 0, result.stderr
        found = json.loads(result.stdout)["outcomes"]
        return [(one["latency_p50"], one["latency_p99"]) for one in found]

    both, fast, late = rates(str(step)), rates(json.dumps(plain)), rates(json.dumps({"step_time": slow}))
    assert both == [*fast[:2], *late[2:]]
    assert both[0] == fast[2]  # one time for all policies: the two cuts are alike
    assert both[2][0] > 1.5 * both[0][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--lengths FILE and --thinking"),
        (("--thinking", "12"), "expected two numbers"),
        (("--thinking", "12,3", "--fitted"), "--fitted without --lengths"),
        (("--thinking", "12,3", "--rate", "0"), "--rate '0'"),
        (("--thinking", "12,3", "--policy", "half"), "policy 'half'"),
        (("--thinking", "12,3", "--policy", "none", "--policy", "none"), "given twice"),
        (("--thinking", "12,3", "--step-time", "{"), "no JSON object"),
        (("--thinking", "12,3", "--step-time", "missing.json"), "cannot be read"),
        (("--thinking", "12,3", "--step-time", '{"step_times": {"16": {}}}'), "has step_times of 16"),
        (("--thinking", "12,3", "--step-time", '{"step_times": {"none": 1}}'), "no JSON object"),
        (("--thinking", "12,3", "--step-time", '{"step_times": {"none": {}}}'), "without base"),
        (("--thinking", "12,3", "--blocks", "1"), "expected a pool that holds the longest request"),
        (("--thinking", "12,3", "--p99", "0"), "--p99 0"),
        (("--thinking", "12,3", "--router", "random"), "router 'random'"),
        (("--lengths", "missing.jsonl"), "cannot be read"),
    ],
)
def test_bad_input_is_refused_in_a_line(run: Run, options: tuple[str, ...], message: str) -> None:
    result = run("simulate", *options, embedded=True)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("budgetctl: ")
