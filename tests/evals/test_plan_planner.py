"""A model that plans: its examples, how it is loaded and measured, and what its steps are told by."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from budgetctl.errors import InputFileError
from budgetctl.evals import plan_planner
from budgetctl.evals.load import LoadedModel
from budgetctl.evals.plan_planner import agreement, load_planner, plan_text, take_pairs
from budgetctl.plan.parse import parse_plan
from budgetctl.plan.plan import Plan, Step
from budgetctl.plan.planner import Planner
from budgetctl.plan.writers import Writer, Written
from budgetctl.reasoner.load import WEIGHTS
from budgetctl.reasoner.plans import plan_question, with_marks
from budgetctl.training.sft_data import prompt_text

QUESTION = "Dial 1 shows 9: turn +5 +4. Dial 2 shows 7: turn -1 +4 +2. Sum of the two digits?"


class Rule:
    """Writes the rule's plan of the question that its prompt begins with, at a token a character."""

    name = "rule"

    def __call__(self, prompt: str) -> Written:
        text = plan_text(plan_question(prompt.removesuffix(" Plan it.")))
        return Written(text, len(text))


def test_a_plan_that_is_written_comes_back() -> None:
    rule = plan_question(QUESTION)
    read = with_marks(parse_plan(plan_text(rule)))
    assert [step.weight for step in read.steps] == [34, 51, 15]
    steps = [replace(step, weight=1.0, after=()) for step in rule.steps]
    assert [replace(step, weight=1.0) for step in read.steps] == steps


def test_how_the_steps_of_any_plan_are_told() -> None:
    texts = ("Read both dials.", "dial two shows 7: turn -1 and so on", "Sum up", "Check the sum")
    marked = with_marks(Plan(tuple(Step(text, 2.0) for text in texts)))
    assert [step.heading for step in marked.steps] == ["", "7-1", "Sum ", None]
    assert marked.steps[1].marks == ("7-1", "We are at 7, then -1")
    assert [step.least_tokens for step in marked.steps] == [0, 0, 9, 0]
    assert [(step.text, step.weight) for step in marked.steps] == [(text, 2.0) for text in texts]
    single = Plan.single(QUESTION, 12)
    assert with_marks(single) == single


def test_agreement_with_the_rule() -> None:
    rule = [plan_question(QUESTION)] * 4
    text = json.loads(plan_text(rule[0]))
    text["steps"][0]["credit"] += 6
    text["steps"][1]["credit"] -= 6
    other = parse_plan(json.dumps({"steps": [*text["steps"][:2], {"text": "Add them.", "credit": 15}]}))
    off = parse_plan(json.dumps(text))
    plans = [parse_plan(plan_text(rule[0]), planner_tokens=8), off, other, Plan.single(QUESTION, 4)]
    found = agreement(plans, rule)
    assert (found["planned"], found["same_steps"], found["same_credits"]) == (0.75, 0.5, 0.25)
    assert found["share_off"] == pytest.approx((0 + 0.04) / 2)
    assert found["planner_tokens"] == 3.0
    assert agreement(plans[3:], rule[:1])["share_off"] is None


def test_the_examples(tmp_path: Path) -> None:
    out = tmp_path / "examples.jsonl"
    plan_planner.examples(out, count=30, seed=0, model=WEIGHTS, prompt="{question} Plan it.")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 30
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    held_out = {question.prompt for question in take_pairs("test", 160)}
    for row in rows:
        question = row["prompt"][0]["content"].removesuffix(" Plan it.")
        assert question not in held_out
        assert prompt_text(row["prompt"], tokenizer).endswith(
            "Plan it.<|im_end|>\n<|im_start|>assistant\n<think>\n"
        )
        close, text = row["completion"].split("\n\n")
        assert (close, text[-10:]) == ("</think>", "<|im_end|>")
        plan = parse_plan(row["completion"])
        assert [step.text for step in plan.steps] == [step.text for step in plan_question(question).steps]
        assert sum(step.weight for step in plan.steps) == 100


def test_held_out_questions_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = take_pairs("train", 3)
    taken = {"train": pairs, "test": pairs[1:2]}
    monkeypatch.setattr(plan_planner, "take_pairs", lambda split, *others, **options: taken[split])
    out = tmp_path / "examples.jsonl"
    plan_planner.examples(out, count=3, seed=0, model=WEIGHTS, prompt="{question}")
    asked = [json.loads(line)["prompt"][0]["content"] for line in out.read_text().splitlines()]
    assert asked == [pairs[0].prompt, pairs[2].prompt]


@pytest.fixture
def folder(loaded: LoadedModel, tmp_path: Path) -> Path:
    loaded.model.save_pretrained(tmp_path / "small")
    loaded.tokenizer.save_pretrained(tmp_path / "small")
    return tmp_path / "small"


def test_a_model_in_a_folder_plans_and_is_kept_by_its_weights(folder: Path, tmp_path: Path) -> None:
    planner = load_planner(folder, tmp_path / "plans", "{question} Plan it.", 6)
    plan = planner(QUESTION)
    assert (plan.source, len(plan.steps)) == ("fallback", 1)
    assert 2 <= plan.planner_tokens <= 12
    assert load_planner(folder, None).writer.name == planner.writer.name
    weights = load_file(folder / "model.safetensors")
    name = next(iter(weights))
    save_file(
        {**weights, name: torch.zeros_like(weights[name])}, folder / "model.safetensors", {"format": "pt"}
    )
    assert load_planner(folder, None).writer.name != planner.writer.name
    with pytest.raises(InputFileError, match="expected a folder with"):
        load_planner(tmp_path / "plans", None)


def test_a_gguf_file_is_named_to_both_loaders(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small.gguf").write_bytes(b"GGUF")
    named: list[object] = []

    def model(folder: Path, **options: object) -> object:
        named.append(options.pop("gguf_file"))
        return loaded.model

    def tokenizer(folder: Path, **options: object) -> object:
        named.append(options.pop("gguf_file"))
        return loaded.tokenizer

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", model)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", tokenizer)
    assert load_planner(tmp_path, None).writer.name.startswith(f"{tmp_path.name}@")
    assert named == ["small.gguf"] * 2


def test_what_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def load(model: Path, cache: Path | None, template: str | None, most: int) -> Planner:
        writer: Writer = Rule()
        return Planner(writer, cache, template=template)

    monkeypatch.setattr(plan_planner, "load_planner", load)
    plan_planner.measure(
        Path("any"), prompt="{question} Plan it.", count=3, split="tune", max_new_tokens=9, show=0
    )
    row = json.loads(capsys.readouterr().out)
    assert (row["planned"], row["same_credits"], row["share_off"]) == (1.0, 1.0, 0.0)
    assert (row["n"], row["replies"], row["seconds"] >= 0) == (3, 1.0, True)
    lengths = [len(plan_text(plan_question(question.prompt))) for question in take_pairs("tune", 3)]
    assert row["planner_tokens"] == pytest.approx(sum(lengths) / 3)
