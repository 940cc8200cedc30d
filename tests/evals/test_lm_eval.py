"""lm-eval with a thinking budget: it judges answers, thoughts are kept, stops do not act in a thought."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from budgetctl.errors import EvalError
from budgetctl.evals import lm_eval as adapter
from budgetctl.evals.load import LoadedModel, load_model
from budgetctl.reasoner.tasks import questions
from budgetctl.segments import split_sequence

installed = importlib.util.find_spec("lm_eval") is not None
needs_lm_eval = pytest.mark.skipif(not installed, reason="lm-eval is not installed")

TASK = """
task: dial
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n\\n\\n"], max_gen_toks: 96, do_sample: false}}
filter_list:
  - name: last-number
    filter:
      - {{function: regex, regex_pattern: '(\\d+)', group_select: -1}}
      - {{function: take_first}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture(scope="module")
def reasoner() -> LoadedModel:
    return load_model()


def test_stops_act_in_the_answer_alone(reasoner: LoadedModel) -> None:
    tokenizer = reasoner.tokenizer
    prompt = tokenizer("<|im_start|>assistant\n<think>\n", add_special_tokens=False).input_ids
    stop = adapter.StopInAnswer(["7"], tokenizer, reasoner.delimiters, len(prompt))
    for text, ended in (
        ("4+3=7\n", False),
        ("4+3=7\n</think>\n\nAnswer: ", False),
        ("4+3=7\n</think>\n\nAnswer: 7", True),
        ("", False),
    ):
        ids = torch.tensor([[*prompt, *tokenizer(text, add_special_tokens=False).input_ids]])
        assert stop(ids, torch.empty(0)).tolist() == [ended], text


@pytest.mark.skipif(installed, reason="lm-eval is installed")
def test_without_lm_eval_it_says_so() -> None:
    for use in (adapter.main, adapter.BudgetctlLM):
        with pytest.raises(EvalError, match=r"lm_eval is not installed.*budgetctl-llm\[lm-eval\]"):
            use()


@needs_lm_eval
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_task_from_end_to_end(tmp_path: Path, reasoner: LoadedModel) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    dials = [q for q, _ in zip((q for q in questions("test") if q.family == "dial"), range(6), strict=False)]
    lines = [json.dumps({"prompt": q.prompt, "answer": q.answer}) + "\n" for q in dials]
    (tmp_path / "dial.jsonl").write_text("".join(lines))
    (tmp_path / "dial.yaml").write_text(TASK.format(path=tmp_path / "dial.jsonl"))

    def evaluate(name: str, **knobs: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        thoughts = tmp_path / f"{name}.jsonl"
        results = lm_eval.simple_evaluate(
            model="budgetctl",
            model_args={"pretrained": "embedded", "thoughts": str(thoughts), **knobs},
            tasks=["dial"],
            task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
            batch_size=4,
            device="cpu",
            apply_chat_template=True,
        )
        return results, [json.loads(line) for line in thoughts.read_text().splitlines()]

    results, thoughts = evaluate("capped", thinking_budget=8)
    assert len(thoughts) == 6
    right = 0
    for line in thoughts:
        assert line["thinking_tokens"] <= line["thinking_budget"] == 8
        assert "</think>" not in line["answer"]
        (question,) = (q for q in dials if q.prompt in line["prompt"])
        right += question.is_correct(line["answer"])
    assert results["results"]["dial"]["exact_match,last-number"] == pytest.approx(right / 6)
    assert results["config"]["budgetctl_knobs"] == {"thinking_budget": 8}
    mean = sum(line["thinking_tokens"] for line in thoughts) / 6
    assert results["config"]["budgetctl_mean_thinking_tokens"] == pytest.approx(mean)
    for sample in results["samples"]["dial"]:
        assert "</think>" not in sample["resps"][0][0]

    # Greedy without a budget is what the model says by itself.
    _, free = evaluate("free")
    tokenizer, model = reasoner.tokenizer, reasoner.model
    for line in free:
        ids = tokenizer(line["prompt"], return_tensors="pt", add_special_tokens=False).input_ids
        out = model.generate(ids, do_sample=False, max_new_tokens=96)[0].tolist()
        parts = split_sequence(out, ids.shape[1], reasoner.delimiters)
        assert line["thought"] == tokenizer.decode(list(parts.thought))
        assert line["answer"] == tokenizer.decode(list(parts.answer))
