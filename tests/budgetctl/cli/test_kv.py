"""``budgetctl generate --kv-budget``: the same as in ``generate``, its memory told, and mistakes told in one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import budgetctl
from budgetctl.cli.app import app
from budgetctl.reasoner.load import PREDICTOR, load_reasoner
from budgetctl.reasoner.tasks import take_questions

Run = Callable[..., Any]
LONG = ("--thinking-target", "60", "--max-new-tokens", "100", "--temperature", "0", "--json")


@pytest.fixture(scope="module")
def reasoner() -> Iterator[tuple[Any, Any, Any]]:
    model, tokenizer = load_reasoner()
    installation = budgetctl.install(model, tokenizer, PREDICTOR)
    yield model, tokenizer, installation
    installation.uninstall()


@pytest.fixture
def run_real() -> Run:
    """The command line with the embedded reasoner."""
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def results(result: Any) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)["results"]


@pytest.mark.parametrize(
    ("options", "knobs"),
    [
        (["--kv-budget", "44"], {"kv_budget": 44}),
        (["--kv-budget", "30%", "--kv-policy", "window"], {"kv_budget": 0.3, "kv_policy": "window"}),
        (["--kv-budget", "180KB"], {"kv_budget": "180KB"}),
        (["--kv-budget", "44", "--kv-max-loss", "1.5"], {"kv_budget": 44, "kv_max_loss": 1.5}),
    ],
)
def test_it_does_what_it_does_in_generate(
    reasoner: tuple[Any, Any, Any], run_real: Run, options: list[str], knobs: dict[str, Any]
) -> None:
    model, tokenizer, installation = reasoner
    question = take_questions("test", 1, min_level=9)[0].prompt
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    width = inputs["input_ids"].shape[1]
    sequences = model.generate(**inputs, **knobs, thinking_target=90, max_new_tokens=150, do_sample=False)
    common = ("--thinking-target", "90", "--max-new-tokens", "150", "--temperature", "0", "--json")
    (answer,) = results(run_real("generate", question, *options, *common))
    assert answer["text"] == tokenizer.decode(sequences[0, width:]).split("<|im_end|>")[0]
    assert answer["thinking_tokens"] == installation.reports(sequences)[0].thinking_tokens
    assert answer["kv_peak_bytes"] == installation.cache.peak_bytes
    (free,) = results(run_real("generate", question, *common))
    assert answer["text"] != free["text"]
    assert answer["kv_peak_bytes"] < free["kv_peak_bytes"]


def test_the_bytes_of_a_full_cache_are_told(run: Run) -> None:
    (answer,) = results(run("generate", "x", *LONG))
    tokens, rest = divmod(answer["kv_peak_bytes"], 2 * 16 * 4)
    assert rest == 0
    # All but the last token, and the prompt.
    written = answer["thinking_tokens"] + answer["answer_tokens"]
    assert written < tokens < written + 20


def test_a_file_of_prompts_shares_the_bytes(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": "x" * n}) for n in (1, 9, 20)))
    answers = results(run("generate", "--batch-file", path, "--kv-budget", "20KiB", *LONG))
    assert [a["close"] != "none" for a in answers] == [True] * 3
    (size,) = {a["kv_peak_bytes"] for a in answers}
    assert 0.9 * 20 * 1024 < size <= 20 * 1024


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--kv-budget", "0"], "kv_budget=0: expected slots"),
        (["--kv-budget", "lots"], "kv_budget='lots': expected slots"),
        (["--kv-policy", "window"], "--kv-policy window without a KV budget: expected --kv-budget too"),
        (["--kv-max-loss", "2"], "--kv-max-loss 2.0 without a KV budget"),
        (["--kv-budget", "64", "--kv-policy", "best"], "unknown policy 'best': expected one of diverse-max"),
        (["--kv-budget", "64", "--kv-max-loss", "0"], "kv_max_loss=0.0: expected a number above 0"),
        (["--kv-budget", "1KiB"], "expected at least 32, which is"),
        (["--kv-budget", "3"], "a capacity of 3 slots: expected at least"),
    ],
)
def test_mistakes_are_told_in_one_line(run: Run, options: list[str], said: str) -> None:
    result = run("generate", "x", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert said in line
