"""The knobs of the command line beside effort and budget: each does what it does in ``generate``, or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import budgetctl
from budgetctl.cli.requests import LIMITS, own_limits

Run = Callable[..., Any]


def results(result: Any) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)["results"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--transition-phrase", "</think>"], "holds a marker of the thought"),
        (["--early-exit", '{"answer_prompt": "<think>"}'], "holds a marker of the thought"),
        (
            ["--transition-phrase", "x <|im_end|>"],
            "transition_phrase='x <|im_end|>' holds an end-of-sequence",
        ),
        (["--max-extensions", "1", "--extension-phrase", "</think>"], "extension_phrase='</think>' holds"),
        (["--max-extensions", "1", "--extension-phrase", "<|im_end|>"], "end-of-sequence token"),
        (["--early-exit", '{"turn": "</think>"}'], "early_exit turn='</think>' holds a marker"),
        (["--thinking-budget", "9223372036854775808"], "thinking_budget=9223372036854775808 is out of range"),
        (["--min-thinking-tokens", "1" + "0" * 400], "min_thinking_tokens=1000"),
        (["--max-new-tokens", "9223372036854775808"], "max_new_tokens=9223372036854775808 is out of range"),
        (["--guidance-strength", "1e400"], "guidance_strength=inf: expected a number >= 0"),
        (["--temperature", "1e-40"], "temperature=1e-40: expected a number > 0"),
        (["--temperature", "1e400"], "temperature=inf: expected a number"),
        (["--max-extensions", "9223372036854775808"], "max_extensions=9223372036854775808"),
        (
            ["--max-new-tokens", "9", "--answer-reserve", "7", "--transition-phrase", "So it is."],
            "is more than max_new_tokens=9",
        ),
    ],
)
def test_phrases_and_numbers_are_refused_in_one_line_too(run: Run, arguments: list[str], said: str) -> None:
    result = run("generate", "x", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert said in line


#: Options, and the same for ``generate`` of an installed model.
KNOBS: list[tuple[list[str], dict[str, Any]]] = [
    (["--thinking-target", "24"], {"thinking_target": 24}),
    (
        ["--thinking-target", "30", "--target-tolerance", "1"],
        {"thinking_target": 30, "target_tolerance": 1},
    ),
    (["--max-extensions", "2"], {"max_extensions": 2}),
    (
        [*("--max-extensions", "3", "--extension-phrase", "Hm."), *("--min-thinking-tokens", "25")],
        {"max_extensions": 3, "extension_phrase": "Hm.", "min_thinking_tokens": 25},
    ),
    (
        ["--thinking-budget", "4", "--transition-phrase", "Time is up."],
        {"thinking_budget": 4, "transition_phrase": "Time is up."},
    ),
    (["--thinking-budget", "30", "--early-exit", "agreement"], {"early_exit": "agreement"}),
    (["--effort", "low", "--guided-steps", "first"], {"effort": "low", "guided_steps": "first"}),
]


@pytest.mark.parametrize(("options", "knobs"), KNOBS)
def test_every_knob_does_what_it_does_in_generate(
    run: Run, model_dir: str, predictor_dir: str, options: list[str], knobs: dict[str, Any]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    installation = budgetctl.install(model, tokenizer, predictor_dir)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    if "early_exit" in knobs:
        knobs = {**knobs, "thinking_budget": 30}
    width = inputs["input_ids"].shape[1]
    sequences = model.generate(**inputs, **knobs, max_new_tokens=60, do_sample=False)
    common = ("--predictor", predictor_dir, "--max-new-tokens", "60", "--temperature", "0", "--json")
    (answer,) = results(run("generate", "x", *options, *common))
    report = installation.reports(sequences)[0].as_dict()
    assert answer["text"] == tokenizer.decode(sequences[0, width:]).removesuffix("<|im_end|>")
    assert {name: answer[name] for name in ("thinking_tokens", "thinking_budget", "close")} == {
        name: report[name] for name in ("thinking_tokens", "thinking_budget", "close")
    }
    free = results(run("generate", "x", *common))[0]["text"]
    assert answer["text"] != free or "early_exit" in knobs


def test_a_transition_is_written_and_is_no_thought(run: Run) -> None:
    options = ("--thinking-budget", "3", "--transition-phrase", "So it is.", "--seed", "1")
    (answer,) = results(run("generate", "x", *options, "--json"))
    assert answer["close"] == "forced"
    assert "So it is.</think>" in answer["text"]
    assert answer["thinking_tokens"] <= 3
    assert "So it is." not in answer["thinking"] + answer["answer"]
    streamed = run("generate", "x", *options, "--stream").stdout
    assert "So it is." not in streamed


def test_an_early_exit_tells_what_it_cost(run: Run) -> None:
    rule = {"method": "confidence", "threshold": 1e-9, "every": 2, "answer_prompt": "A:", "probe_tokens": 3}
    (answer,) = results(run("generate", "x", "--early-exit", json.dumps(rule), "--json", "--seed", "1"))
    assert (answer["close"], answer["thinking_tokens"]) == ("early", 4)
    cost = answer["probe_cost"]
    assert cost["probes"] == 1
    assert 1 <= cost["probe_tokens"] <= 3
    assert cost["read_tokens"] > 4
    shown = run("generate", "x", "--early-exit", json.dumps(rule), "--seed", "1").stdout.rstrip()
    told = f"1 trial answer of {cost['probe_tokens']} tokens, {cost['read_tokens']} tokens read"
    assert shown.endswith(f"thinking 4 tokens · closed early · {told}")


def test_a_line_of_a_file_has_limits_of_its_own(run: Run, tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"thinking_target": 20},
        {"thinking_target": 20, "target_tolerance": 5},
        {"min_thinking_tokens": 30},
        {"effort": "none", "min_thinking_tokens": None},
        {},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": "x", **line}) for line in lines))
    given = ("--thinking-budget", "40", "--min-thinking-tokens", "6", "--json")
    answers = results(run("generate", "--batch-file", path, *given))
    assert [a["thinking_budget"] for a in answers] == [22, 25, 40, 0, 40]
    least = [18, 15, 30, 0, 6]
    for answer, low in zip(answers, least, strict=True):
        assert low <= answer["thinking_tokens"] <= answer["thinking_budget"]


@pytest.mark.parametrize(
    ("own", "kept"),
    [
        ({}, ["effort", "thinking_budget", "thinking_target", "target_tolerance", "min_thinking_tokens"]),
        ({"effort": "low"}, ["effort", "min_thinking_tokens"]),
        ({"thinking_budget": None}, ["thinking_budget", "min_thinking_tokens"]),
        ({"thinking_target": 9}, ["thinking_target"]),
        ({"thinking_target": 9, "min_thinking_tokens": 2}, ["thinking_target", "min_thinking_tokens"]),
        (
            {"target_tolerance": 2},
            ["effort", "thinking_budget", "thinking_target", "target_tolerance", "min_thinking_tokens"],
        ),
    ],
)
def test_what_a_line_leaves_of_the_command_line(own: dict[str, Any], kept: list[str]) -> None:
    found = own_limits({"prompt": "x", **own}, dict.fromkeys(LIMITS, "given"))
    assert found == {name: own.get(name, "given") for name in kept}
