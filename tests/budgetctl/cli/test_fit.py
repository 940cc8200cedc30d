from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
COLLECT = ("--samples", "2", "--max-new-tokens", "60", "--json")


def as_json(result: Any) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def refused(result: Any) -> str:
    assert (result.exit_code, result.stdout) == (2, ""), result.stderr
    return result.stderr.splitlines()[-1]


def test_from_thoughts_to_a_calibrated_predictor(run: Run, tmp_path: Path) -> None:
    fitted_on, others, predictor = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "predictor"
    collected = as_json(run("collect", "--questions", "24", "--out", fitted_on, *COLLECT))
    assert (collected["prompts"], collected["traces"]) == (24, 48)
    assert 0 <= collected["unclosed_share"] < 0.9

    before = fitted_on.read_text()
    fitted_on.write_text(before[: len(before) // 2])
    as_json(run("collect", "--questions", "24", "--out", fitted_on, *COLLECT))
    assert fitted_on.read_text() == before  # taken up where it was torn off

    fitted = as_json(run("fit", "--traces", fitted_on, "--out", predictor, "--epochs", "2", "--json"))
    assert set(fitted["baselines"]) == {"constant", "position"}
    assert fitted["held_out"]["nll_state"] > 0
    config = json.loads((predictor / "config.json").read_text())
    assert config["data_card"]["settings"]["temperature"] == 1.0
    assert config["calibration"] == {}

    same_questions = run("calibrate", "--predictor", predictor, "--traces", fitted_on)
    assert "was fitted on: expected others" in refused(same_questions)

    as_json(run("collect", "--questions", "30", "--split", "tune", "--out", others, *COLLECT))
    calibrated = as_json(run("calibrate", "--predictor", predictor, "--traces", others, "--json"))
    assert set(calibrated["levels"]) == {"0.5", "0.8", "0.9"}
    config = json.loads((predictor / "config.json").read_text())
    assert config["calibration"] == calibrated["levels"]

    (answer,) = as_json(run("generate", "x", "--effort", "low", "--predictor", predictor, "--json"))[
        "results"
    ]
    assert answer["predicted_tokens"] > 0
    text = run("fit", "--traces", fitted_on, "--out", predictor, "--epochs", "1")
    assert "baseline position" in text.stdout


def test_refit_is_the_three_commands(run: Run, tmp_path: Path) -> None:
    options = ("--samples", "2", "--max-new-tokens", "60", "--seed", "3")
    given = run("refit", "--questions", "40", "--out", tmp_path / "one", "--epochs", "1", *options, "--json")
    told = as_json(given)
    traces, others, predictor = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "predictor"
    as_json(run("collect", "--questions", "40", "--out", traces, *options, "--json"))
    more = ("--split", "tune", "--samples", "1", "--max-new-tokens", "60", "--seed", "3", "--json")
    as_json(run("collect", "--questions", "20", "--out", others, *more))
    as_json(run("fit", "--traces", traces, "--out", predictor, "--epochs", "1", "--seed", "3", "--json"))
    calibrate = ("--predictor", predictor, "--traces", others, "--seed", "3", "--json")
    assert as_json(run("calibrate", *calibrate))["levels"] == told["calibration"]
    for name in ("config.json", "predictor.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (predictor / name).read_bytes()


def test_refit_asks_for_what_is_missing(run: Run, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"a"\n')
    out = tmp_path / "out"
    assert "expected both or neither" in refused(run("refit", "--out", out, "--prompts", prompts))
    assert "expected one of --prompts" in refused(run("refit", "--out", out))
    both = ("--prompts", prompts, "--calibration-prompts", tmp_path / "none.jsonl")
    assert "none.jsonl is no file" in refused(run("refit", "--out", out, *both))
    assert not out.exists()


def test_prompts_from_a_file(run: Run, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"one"\n{"prompt": "two"}\n')
    assert (
        as_json(run("collect", "--prompts", prompts, "--out", tmp_path / "t.jsonl", *COLLECT))["traces"] == 4
    )


@pytest.mark.usefixtures("no_model")
def test_bad_input_is_refused_before_a_model_is_loaded(run: Run, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('"one"\n{"prompt": 2}\n')
    out = ("--out", tmp_path / "out")
    assert "bad.jsonl, line 2: the prompt is of type int" in refused(run("collect", "--prompts", bad, *out))
    assert "expected one of --prompts" in refused(run("collect", *out))
    assert "unknown split 'x'" in refused(run("collect", "--questions", "2", "--split", "x", *out))
    assert "temperature=0" in refused(run("collect", "--questions", "2", "--temperature", "0", *out))
    assert "missing cannot be read" in refused(run("fit", "--traces", tmp_path / "missing", *out))
    assert "bad.jsonl, line 1" in refused(run("fit", "--traces", bad, *out))
    assert "is a file" in refused(run("fit", "--traces", bad, "--out", bad))
    assert "is no directory" in refused(
        run("calibrate", "--traces", bad, "--predictor", tmp_path / "missing")
    )
    assert "config.json is missing" in refused(run("calibrate", "--traces", bad, "--predictor", tmp_path))


def test_traces_of_another_tokenizer_are_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    as_json(run("collect", "--questions", "2", "--out", path, *COLLECT))
    path.write_text(path.read_text().replace('"natural_end_ids": [[4]]', '"natural_end_ids": [[9]]'))
    assert "another tokenizer" in refused(run("fit", "--traces", path, "--out", tmp_path / "p"))
