from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from budgetctl.cli import load

Run = Callable[..., Any]
FIELDS = {
    "prompt",
    "thinking",
    "answer",
    "text",
    "thinking_tokens",
    "answer_tokens",
    "thinking_budget",
    "predicted_tokens",
    "close",
    "leaked",
    "guidance_strength",
    "kv_peak_bytes",
    "note_tokens",
    "seconds",
}


def results(result: Any) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)["results"]


def complaint(result: Any) -> str:
    """The one line that a refusal writes."""
    assert (result.exit_code, result.stdout) == (2, ""), result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("budgetctl: ")
    return line


def test_json_has_every_field_and_keeps_the_budget(run: Run) -> None:
    (answer,) = results(run("generate", "How many?", "--thinking-budget", "4", "--json"))
    assert set(answer) == FIELDS
    assert answer["prompt"] == "How many?"
    assert answer["thinking_budget"] == 4
    assert answer["thinking_tokens"] <= 4
    assert answer["predicted_tokens"] is None
    assert answer["close"] in ("natural", "forced")
    assert answer["seconds"] > 0
    assert "</think>" in answer["text"]
    assert answer["text"].startswith(answer["thinking"])


def test_json_is_all_of_stdout_even_if_a_library_prints(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    open_model = load.open_model

    def noisy(*arguments: Any) -> Any:
        sys.stdout.write("noise\n")
        return open_model(*arguments)

    monkeypatch.setattr(load, "open_model", noisy)
    result = run("generate", "x", "--thinking-budget", "2", "--json")
    assert list(json.loads(result.stdout)) == ["results"]
    assert result.stdout.count("\n") == 1
    assert "noise" in result.stderr


def test_text_output_shows_answer_and_summary(run: Run) -> None:
    (answer,) = results(run("generate", "x", "--thinking-budget", "5", "--json", "--seed", "3"))
    result = run("generate", "x", "--thinking-budget", "5", "--seed", "3")
    assert result.exit_code == 0
    summary = result.stdout.rstrip().splitlines()[-1]
    assert summary == f"thinking {answer['thinking_tokens']} of 5 tokens · closed {answer['close']}"
    assert answer["answer"].split()[0] in result.stdout


def test_relative_effort_reports_prediction_and_share(run: Run, predictor_dir: str) -> None:
    for effort, share in (("low", 0.25), ("0.75", 0.75)):
        (answer,) = results(run("generate", "x", "--effort", effort, "--predictor", predictor_dir, "--json"))
        assert answer["predicted_tokens"] > 0
        expected = max(round(share * answer["predicted_tokens"]), 1)
        assert abs(answer["thinking_budget"] - expected) <= 1  # the prediction is shown rounded
        assert answer["thinking_tokens"] <= answer["thinking_budget"]


def test_effort_none_does_not_think(run: Run) -> None:
    (answer,) = results(run("generate", "x", "--effort", "none", "--json"))
    assert (answer["thinking_tokens"], answer["thinking"]) == (0, "")


def test_the_prompt_can_come_from_stdin(run: Run) -> None:
    (answer,) = results(run("generate", "-", "--thinking-budget", "2", "--json", stdin="What?\n"))
    assert answer["prompt"] == "What?"


def test_same_seed_same_text_other_seed_other_text(run: Run) -> None:
    texts = [results(run("generate", "x", "--json", "--seed", seed))[0]["text"] for seed in "778"]
    assert texts[0] == texts[1] != texts[2]


def test_temperature_0_is_greedy(run: Run) -> None:
    texts = [
        results(
            run("generate", "x", "--temperature", "0", "--max-new-tokens", "20", "--json", "--seed", seed)
        )[0]["text"]
        for seed in "12"
    ]
    assert texts[0] == texts[1]


def test_a_batch_gives_each_row_its_own_limit_and_the_answer_it_gets_alone(
    run: Run, predictor_dir: str, tmp_path: Path
) -> None:
    lines = [
        {"prompt": "A ball is under cup A.", "thinking_budget": 3},
        {"prompt": "x", "effort": "high"},
        "A dial shows 3: turn +4 -5 +6 +7. Where does it stop?",
        {"prompt": "y", "thinking_budget": 12},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    common = ("--predictor", predictor_dir, "--max-new-tokens", "60", "--json", "--thinking-budget", "7")
    whole = results(run("generate", "--batch-file", path, *common))
    assert [a["thinking_budget"] for a in whole][::2] == [3, 7]
    assert whole[3]["thinking_budget"] == 12
    assert whole[1]["predicted_tokens"] is not None
    in_pairs = results(run("generate", "--batch-file", path, "--batch-size", "2", *common))
    for number, line in enumerate(lines):
        path.write_text(json.dumps(line))
        (alone,) = results(run("generate", "--batch-file", path, "--seed", number, *common))
        for other in (whole[number], in_pairs[number]):
            # A batch keeps its keys and values together.
            batch = {"seconds": 0, "kv_peak_bytes": 0}
            assert other | batch == alone | batch


def test_one_prompt_under_two_limits_in_a_batch_tells_each_close_apart(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "x", "thinking_budget": 0}, {"prompt": "x", "effort": "max"}]
    path.write_text("\n".join(map(json.dumps, lines)))
    (cut, _) = results(run("generate", "--batch-file", path, "--json"))
    assert (cut["thinking_tokens"], cut["close"]) == (0, "forced")


def test_bad_lines_are_named_and_the_others_answered(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    good = b'{"prompt": "one", "thinking_budget": 2}'
    bad = {
        2: (b'{"prompt": "two"', "not JSON"),
        3: (b"7", "a JSON int"),
        5: (b'{"prompt": "x", "effort": "huge"}', "unknown effort 'huge'"),
        6: (b'{"prompt": "x", "thinking_budget": -1}', "negative"),
        7: (b'{"prompt": "x", "thinking_budget": 2.5}', "not a whole number"),
        8: (b'{"prompt": "x", "thinking_budget": 5, "effort": "none"}', "contradicts"),
        9: (b'{"prompt": "x", "budget": 5}', "unknown field 'budget'"),
        10: (b'{"effort": "none"}', "the prompt is missing"),
        11: (b'{"prompt": ""}', "the prompt is empty"),
        12: (b'"\xff"', "not UTF-8"),
        13: (b'"\\ud800"', "no valid Unicode"),
        14: (b'{"prompt": "x", "effort": 0.5}', "length predictor"),
        15: (b"[" * 100_000, "not JSON"),
        16: (b'{"prompt": "x", "effort": NaN}', "out of range"),
        17: (b'{"prompt": "x", "thinking_target": 9, "effort": "low"}', "contradicts effort='low'"),
        18: (b'{"prompt": "x", "thinking_target": [9]}', "not a whole number"),
        19: (b'{"prompt": "x", "target_tolerance": 9}', "without a target"),
        20: (b'{"prompt": "x", "thinking_budget": 2, "min_thinking_tokens": 3}', "inside the budget"),
    }
    lines = [bad[n][0] if n in bad else good if n in (1, 4) else b"" for n in range(1, 21)]
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    result = run("generate", "--batch-file", path, "--json")
    assert result.exit_code == 2
    report = json.loads(result.stdout)
    assert [a["thinking_budget"] for a in report["results"]] == [2, 2]
    assert [e["line"] for e in report["errors"]] == list(bad)
    for entry, (_, said) in zip(report["errors"], bad.values(), strict=True):
        assert said in entry["error"]
        assert f"{path}, line {entry['line']}: {entry['error']}" in result.stderr


@pytest.mark.usefixtures("no_model")
def test_a_file_of_bad_lines_loads_no_model(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("{\n[]")
    result = run("generate", "--batch-file", path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 2


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x", "--effort", "huge"], "unknown effort 'huge'"),
        (["x", "--effort", "1.5"], "out of range"),
        (["x", "--effort", "0"], "out of range"),
        (["x", "--effort", "nan"], "out of range"),
        (["x", "--effort", "low"], "length predictor"),
        (["x", "--thinking-budget", "-1"], "thinking_budget=-1 is negative"),
        (["x", "--thinking-budget", "2.5"], "'2.5' is no whole number"),
        (["x", "--thinking-budget", "many"], "'many' is no whole number"),
        (["x", "--effort", "none", "--thinking-budget", "5"], "contradicts"),
        (["x", "--effort", "max", "--thinking-budget", "5"], "contradicts"),
        (["x", "--answer-reserve", "100", "--max-new-tokens", "50"], "more than max_new_tokens=50"),
        (["x", "--answer-reserve", "-1"], "answer_reserve=-1 is negative"),
        (["x", "--min-thinking-tokens", "9", "--thinking-budget", "5"], "min_thinking_tokens=9"),
        (["x", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["x", "--guidance-strength", "-1"], "guidance_strength=-1.0"),
        (["x", "--guided-steps", "all"], "unknown guided_steps 'all'"),
        (["x", "--thinking-target", "0"], "thinking_target=0 is no thought"),
        (["x", "--thinking-target", "few"], "'few' is no whole number"),
        (["x", "--thinking-target", "9", "--effort", "none"], "contradicts effort='none'"),
        (["x", "--thinking-target", "9", "--thinking-budget", "9"], "contradicts thinking_budget=9"),
        (["x", "--thinking-target", "9", "--min-thinking-tokens", "3"], "contradicts min_thinking_tokens=3"),
        (["x", "--target-tolerance", "3"], "target_tolerance=3 without a target"),
        (["x", "--thinking-target", "9", "--target-tolerance", "-1"], "target_tolerance=-1 is negative"),
        (["x", "--max-extensions", "0"], "max_extensions=0: expected a whole number >= 1"),
        (["x", "--max-extensions", "1.5"], "'1.5' is no whole number: expected a number of times"),
        (["x", "--extension-phrase", "Hm"], "extension_phrase='Hm' is never written"),
        (["x", "--max-extensions", "1", "--extension-phrase", ""], "the extension phrase has no tokens"),
        (["x", "--transition-phrase", " "], "transition_phrase=' ' is empty"),
        (["x", "--early-exit", "yes"], "early_exit method 'yes'"),
        (["x", "--early-exit", '{"method": "agreement"'], "is not JSON"),
        (["x", "--early-exit", '{"threshold": NaN}'], "threshold=nan"),
        (["x", "--early-exit", '{"window": 2}'], "window only for 'agreement'"),
        (["x", "--early-exit", '{"treshold": 1}'], "no field 'treshold'"),
        (["x", "--temperature", "nan"], "temperature=nan"),
        (["x", "--device", "nonsense"], "device 'nonsense'"),
        (["x", "--predictor", "./missing"], "no length predictor at ./missing"),
        (["x", "--stream", "--json"], "--stream and --json"),
        (["--batch-file", "f", "--stream"], "--stream and --batch-file"),
        (["x", "--batch-file", "f"], "both PROMPT and --batch-file"),
        ([], "neither PROMPT nor --batch-file"),
        ([" "], "the prompt is empty"),
        (["-"], "the prompt is empty"),
        (["--batch-file", "./missing.jsonl"], "missing.jsonl cannot be read (No such file or directory)"),
        (["--batch-file", "."], "cannot be read (Is a directory)"),
        (["--batch-file", "./missing.jsonl", "--effort", "huge"], "unknown effort 'huge'"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_a_model_is_loaded(
    run: Run, arguments: list[str], said: str
) -> None:
    assert said in complaint(run("generate", *arguments))


@pytest.mark.usefixtures("no_model")
def test_an_empty_batch_file_and_a_stdin_that_is_no_text_are_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n\n")
    assert "is empty" in complaint(run("generate", "--batch-file", path))
    assert "stdin is not UTF-8" in complaint(run("generate", "-", stdin=b"\xff\xfe"))


@pytest.mark.usefixtures("no_model")
def test_a_corrupt_predictor_is_refused(run: Run, predictor_dir: str, tmp_path: Path) -> None:
    for name, content in (("config.json", b"{"), ("predictor.safetensors", b"cut")):
        for file in Path(predictor_dir).iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / name).write_bytes(content)
        assert name in complaint(run("generate", "x", "--predictor", tmp_path))


def test_a_predictor_of_another_model_is_refused(
    run: Run, model_dir: str, predictor_dir: str, tmp_path: Path
) -> None:
    for file in Path(model_dir).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"] + 1.0
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    result = run(
        "generate", "x", "--model", tmp_path, "--predictor", predictor_dir, "--effort", "low", embedded=True
    )
    assert "was fitted for 'tiny', this is another model" in complaint(result)


def test_a_model_without_thought_markers_is_refused_before_its_weights_are_read(
    run: Run, tokenizer: PreTrainedTokenizerFast, model_dir: str, tmp_path: Path
) -> None:
    for file in Path(model_dir).iterdir():
        text = file.read_bytes()
        if file.name != "model.safetensors":
            text = text.replace(b"<think>", b"<|a|>").replace(b"</think>", b"<|b|>")
            (tmp_path / file.name).write_bytes(text)
    result = run("generate", "x", "--model", tmp_path, embedded=True)
    assert "no thought markers in this tokenizer" in complaint(result)


def test_something_that_is_no_model_is_refused(run: Run, tmp_path: Path) -> None:
    assert "no model at" in complaint(run("generate", "x", "--model", tmp_path / "no", embedded=True))
    assert "cannot be loaded" in complaint(run("generate", "x", "--model", tmp_path, embedded=True))


def test_installed_generate_takes_a_limit_for_each_row(model_dir: str, predictor_dir: str) -> None:
    """What the command line does with its own controller also works through ``install``."""
    import budgetctl

    model = AutoModelForCausalLM.from_pretrained(model_dir)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    installation = budgetctl.install(model, tokenizer, predictor_dir)
    inputs = tokenizer(
        ["<|im_start|>assistant\n<think>\n"] * 3, return_tensors="pt", add_special_tokens=False
    )
    torch.manual_seed(0)
    sequences = model.generate(
        **inputs, effort=["none", "high", "auto"], thinking_budget=[0, 4, 2], max_new_tokens=30
    )
    budgets = [report.thinking_budget for report in installation.reports(sequences)]
    assert (budgets[0], budgets[2]) == (0, 2)
    assert 1 <= budgets[1] <= 4
