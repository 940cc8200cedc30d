"""Supervised warm-up: what bears loss, the script from its recipe, resumed, with LoRA, and its refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import ModelConfig, SFTConfig, TrlParser

from budgetctl.delimiters import find_delimiters
from budgetctl.errors import TrainingError
from budgetctl.reasoner.load import WEIGHTS
from budgetctl.training import sft
from budgetctl.training.completions import CompletionReader
from budgetctl.training.mode_data import judge
from budgetctl.training.schedules import rex
from budgetctl.training.script import train
from budgetctl.training.sft_data import IGNORE, balanced, joined, tokenize_rows
from budgetctl.training.teacher import teacher_thoughts
from budgetctl.training.thinkdial import completion_text
from tests.training.tiny import command_line

RECIPE = Path(__file__).resolve().parents[2] / "training" / "recipes" / "sft_tiny.yaml"
SHORT = {"questions": 8, "samples": 1, "disable_tqdm": True, "max_steps": 4, "per_device_train_batch_size": 2}


def make(model: Path, out: Path, **options: Any) -> sft.WarmUpTrainer:
    parser = TrlParser((sft.SFTArguments, SFTConfig, ModelConfig))  # type: ignore[arg-type]
    given = command_line({"model_name_or_path": model, "output_dir": out, **SHORT, **options})
    return sft.build(*parser.parse_args_and_config(["--config", str(RECIPE), *given]))


def test_the_loss_is_on_the_completion_alone(
    tokenizer: PreTrainedTokenizerFast, tiny: Path, tmp_path: Path
) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": "2+1?"}], "completion": "2+1=3\n</think>\n\n3<|im_end|>"},
        {"prompt": "Say 4: ", "completion": "4<|im_end|>"},
    ]
    examples, dropped = tokenize_rows(Dataset.from_list(rows[:1]), tokenizer)
    assert dropped == 0
    (example,) = examples
    learned = [
        token for token, label in zip(example["input_ids"], example["labels"], strict=True) if label != IGNORE
    ]
    assert tokenizer.decode(learned) == rows[0]["completion"]
    assert tokenizer.decode(example["input_ids"]).startswith(
        "<|im_start|>user\n2+1?<|im_end|>\n<|im_start|>assistant"
    )
    assert [label for label in example["labels"] if label != IGNORE] == learned

    # And so it is in the trainer: its first loss is the mean cross entropy over the completion's tokens.
    (tmp_path / "d.jsonl").write_text(json.dumps(rows[0]) + "\n")
    trainer = make(
        tiny, tmp_path / "out", data=tmp_path / "d.jsonl", max_steps=1, per_device_train_batch_size=1
    )
    trainer.train()
    model = AutoModelForCausalLM.from_pretrained(tiny)
    ids, labels = torch.tensor([example["input_ids"]]), torch.tensor(example["labels"])
    expected = cross_entropy(model(ids).logits[0, :-1], labels[1:], ignore_index=IGNORE)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-3)
    text, _ = tokenize_rows(Dataset.from_list(rows[1:]), tokenizer)
    assert tokenizer.decode(text[0]["input_ids"]) == "Say 4: 4<|im_end|>"


def test_long_examples_are_left_out_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = Dataset.from_list([{"prompt": "7", "completion": "7" * n} for n in (3, 9)])
    examples, dropped = tokenize_rows(rows, tokenizer, max_length=5)
    assert (len(examples), dropped) == (1, 1)
    with pytest.raises(TrainingError, match="none of at most max_length=2"):
        tokenize_rows(rows, tokenizer, max_length=2)


def test_several_sources_are_joined_by_their_common_columns(tokenizer: PreTrainedTokenizerFast) -> None:
    asked = [{"role": "user", "content": "a"}]
    modes = Dataset.from_list([{"prompt": asked, "completion": "b", "mode": "low"}])
    plain = Dataset.from_dict({"completion": ["d", "f"], "prompt": ["c", "e"], "source": ["x", "y"]})
    assert joined([modes], tokenizer).to_list() == modes.to_list()
    text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    assert joined([modes, plain], tokenizer).to_list() == [
        {"prompt": prompt, "completion": completion}
        for prompt, completion in ((text, "b"), ("c", "d"), ("e", "f"))
    ]


def test_balancing_keeps_as_many_of_each() -> None:
    rows = Dataset.from_dict({"mode": list("aabcba"), "n": range(6)})
    assert list(balanced(rows, "mode")["n"]) == [0, 2, 3]
    with pytest.raises(TrainingError, match="no column 'kind' to balance by among mode, n"):
        balanced(rows, "kind")


def test_written_thoughts_are_right_and_differ_in_length(tokenizer: PreTrainedTokenizerFast) -> None:
    thoughts = teacher_thoughts(12, 3, tokenizer, find_delimiters(tokenizer), seed=2)
    reader = CompletionReader(tokenizer)
    assert len(thoughts) == 36
    for thought in thoughts:
        ids = [*thought.thought_ids, *thought.close_ids, *thought.answer_ids]
        part = reader.read(tokenizer.encode(completion_text(tokenizer, ids), add_special_tokens=False))
        assert part.finished
        assert judge(part.answer, thought.row)
    lengths = [len(thought.thought_ids) for thought in thoughts]
    assert any(len(set(lengths[at : at + 3])) > 1 for at in range(0, 36, 3))


def test_the_recipe_trains_the_embedded_reasoner(tmp_path: Path) -> None:
    sft.main(
        ["--config", str(RECIPE), "--output_dir", str(tmp_path), "--max_steps", "2", "--disable_tqdm", "true"]
    )
    before, after = load_file(WEIGHTS / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert any(not torch.equal(before[name].float(), after[name]) for name in after)
    assert (tmp_path / "generation_config.json").exists()


class Killed(TrainerCallback):
    """Ends a run as Ctrl-C would."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


def test_a_killed_run_ends_with_the_same_weights(tiny: Path, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
    whole = make(tiny, tmp_path / "whole", **saving)
    train(whole)  # type: ignore[arg-type]
    rates = [entry["learning_rate"] for entry in whole.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([1e-2 * rex(step / 4) for step in range(4)])
    cut = make(tiny, tmp_path / "cut", **saving)
    cut.add_callback(Killed())
    with pytest.raises(KeyboardInterrupt):
        train(cut)  # type: ignore[arg-type]
    train(make(tiny, tmp_path / "cut", resume_from_checkpoint="last", **saving))  # type: ignore[arg-type]
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(found[name], weights) for name, weights in expected.items())
    assert any(not torch.equal(load_file(tiny / "model.safetensors")[n], w) for n, w in expected.items())


def test_lora_and_evaluation(tiny: Path, tmp_path: Path) -> None:
    lora = {"use_peft": "true", "lora_target_modules": ["q_proj", "v_proj"], "lora_r": 2, "lora_alpha": 4}
    trainer = make(tiny, tmp_path, **lora, eval_strategy="steps", eval_steps=2, eval_share=0.4, kind="effort")
    train(trainer)  # type: ignore[arg-type]
    adapter = load_file(tmp_path / "adapter_model.safetensors")
    assert any(weights.abs().max() > 0 for name, weights in adapter.items() if "lora_B" in name)
    assert any("eval_loss" in entry for entry in trainer.state.log_history)
    assert 0 < len(trainer.eval_dataset) < 8
    assert len(trainer.train_dataset) + len(trainer.eval_dataset) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "cosine"}, "expected one of rex, uba"),
        ({"schedule": "rex", "lr_scheduler_kwargs": '{"phi": 2}'}, "rex has no parameter 'phi'"),
        ({"schedule": "uba", "lr_scheduler_kwargs": '{"phi": 0}'}, "expected a value above 0"),
        ({"kind": "modes"}, "kind 'modes': expected l1-exact"),
        ({"kind": "hbpo"}, "give --budgets"),
        ({"kind": "hbpo", "budgets": [2]}, "no written thought for 8 questions"),
        ({"max_length": 8}, "raise max_length"),
        ({"balance": "mode"}, "no column 'mode' to balance by"),
        ({"data": "FOLDER/none.jsonl"}, "cannot be read"),
        ({"data": "FOLDER/bad.jsonl"}, "make it with budgetctl.training.mode_data"),
        ({"data": "FOLDER/good.jsonl", "eval_strategy": "steps"}, "no column 'question_id'"),
    ],
)
def test_mistakes_stop_before_the_model_is_loaded(
    options: dict[str, Any],
    message: str,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "good.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    options = {
        name: value.replace("FOLDER", str(tmp_path)) if isinstance(value, str) else value
        for name, value in options.items()
    }

    def loads(*arguments: Any, **others: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("trl.trainer.sft_trainer.create_model_from_path", loads)
    given = command_line({"model_name_or_path": tiny, "output_dir": tmp_path / "out", **SHORT, **options})
    with pytest.raises(SystemExit) as stopped:
        sft.main(["--config", str(RECIPE), *given])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_recipe_may_name_one_file_of_data(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: runs/one.jsonl\noutput_dir: out\nuse_cpu: true\nbf16: false\n")
    parser = TrlParser((sft.SFTArguments, SFTConfig, ModelConfig))  # type: ignore[arg-type]
    script, *_ = parser.parse_args_and_config(["--config", str(recipe)])
    assert script.data == ["runs/one.jsonl"]
