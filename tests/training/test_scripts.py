"""The scripts from their recipes: they run, save, resume, and refuse what cannot work before a model is loaded."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, ModelConfig, TrlParser

from budgetctl.training import brpo, elastic, grpo, hbpo, schedules
from budgetctl.training.script import build, main, train
from tests.training.run_method import SCRIPTS
from tests.training.tiny import OPTIONS, OWN, command_line, reward_by_ids

RECIPES = Path(__file__).resolve().parents[2] / "training" / "recipes"


def words(name: str, model: Path, out: Path, **options: Any) -> list[str]:
    return command_line({**OPTIONS, "model_name_or_path": model, "output_dir": out, **OWN[name], **options})


@pytest.mark.parametrize("name", SCRIPTS)
def test_recipes_train_the_embedded_reasoner(name: str, tmp_path: Path) -> None:
    recipe = ["--config", str(RECIPES / f"{name}_tiny.yaml"), "--output_dir", str(tmp_path)]
    main(
        SCRIPTS[name],
        [*recipe, "--max_steps", "2", "--max_completion_length", "64", "--disable_tqdm", "true"],
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    before = load_file(Path(grpo.__file__).parents[1] / "budgetctl/reasoner/weights/model.safetensors")
    moved = [n for n, p in model.named_parameters() if not torch.equal(p, before[n].float())]
    assert moved
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template
    settings = json.loads((tmp_path / "generation_config.json").read_text())
    expected = {
        "grpo": {},
        "hbpo": {"trained_budgets": [16, 48], "budget_opening": hbpo.OPENING},
        "elastic": {"thinking_budget": 48, "answer_reserve": 16},
        "brpo": {"trained_budgets": [24, 48], "answer_reserve": 16},
    }[name]
    assert settings.items() >= expected.items()
    assert not hasattr(model.generation_config, "no_such_setting")
    for key, value in expected.items():
        assert getattr(model.generation_config, key) == value


class Killed(TrainerCallback):
    """Ends a run as Ctrl-C would, in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def trained(
    name: str,
    model: Path,
    out: Path,
    kill_at: int | None = None,
    weights: str = "model.safetensors",
    **options: Any,
) -> dict[str, torch.Tensor]:
    parser = TrlParser((SCRIPTS[name], GRPOConfig, ModelConfig))  # type: ignore[arg-type]
    steps = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, **options}
    trainer = build(*parser.parse_args_and_config(words(name, model, out, **steps)))
    reward_by_ids(trainer)
    if kill_at is None:
        train(trainer)
        return load_file(out / weights)
    trainer.add_callback(Killed(kill_at))
    with pytest.raises(KeyboardInterrupt):
        train(trainer)
    return {}


@pytest.mark.parametrize(
    ("name", "accumulation"),
    [("grpo", 1), ("hbpo", 1), ("elastic", 1), ("brpo", 1), ("brpo", 2)],  # 2: resumed at the end of an epoch
)
def test_a_killed_run_ends_with_the_same_weights(
    name: str, accumulation: int, tiny: Path, tmp_path: Path
) -> None:
    options = {"gradient_accumulation_steps": accumulation}
    whole = trained(name, tiny, tmp_path / "whole", **options)
    trained(name, tiny, tmp_path / "cut", kill_at=3, **options)
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    resumed = trained(name, tiny, tmp_path / "cut", resume_from_checkpoint="last", **options)
    start = load_file(tiny / "model.safetensors")
    assert any(not torch.equal(start[n], w) for n, w in whole.items())
    for n, weights in whole.items():
        assert torch.equal(resumed[n], weights), n


def test_lora_trains_an_adapter(tiny: Path, tmp_path: Path) -> None:
    lora = {"use_peft": "true", "lora_target_modules": ["q_proj", "v_proj"], "lora_r": 2, "lora_alpha": 4}
    trained("elastic", tiny, tmp_path, weights="adapter_model.safetensors", **lora)
    adapter = load_file(tmp_path / "adapter_model.safetensors")
    assert {n.rsplit(".", 2)[-2] for n in adapter} == {"lora_A", "lora_B"}
    assert any(w.abs().max() > 0 for n, w in adapter.items() if "lora_B" in n)
    assert json.loads((tmp_path / "generation_config.json").read_text())["thinking_budget"] == 4


@pytest.mark.parametrize("name", ["rex", "uba"])
def test_the_learning_rate_follows_the_schedule(name: str, tiny: Path, tmp_path: Path) -> None:
    parser = TrlParser((grpo.GRPOArguments, GRPOConfig, ModelConfig))  # type: ignore[arg-type]
    options = {
        "schedule": name,
        "max_steps": 4,
        **({"lr_scheduler_kwargs": '{"phi": 0.7}'} if name == "uba" else {}),
    }
    trainer = build(*parser.parse_args_and_config(words("grpo", tiny, tmp_path, **options)))
    train(trainer)
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    shape = schedules.rex if name == "rex" else partial(schedules.uba, phi=0.7)
    assert rates == pytest.approx([1e-2 * shape(step / 4) for step in range(4)])
    assert trainer.lr_scheduler.get_last_lr() == [0.0, 0.0]


def test_evaluation_rolls_out_too(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "per_device_eval_batch_size": 4,
        "eval_share": 0.2,
        "questions": 16,
    }
    main(brpo.BRPOArguments, words("brpo", tiny, tmp_path, **evaluation))
    assert "eval_rollout/thinking_tokens" in capsys.readouterr().out


BAD = [
    ("hbpo", {"budgets": [8, 40]}, "lower them or raise max_completion_length"),
    ("hbpo", {"budgets": [8, 24]}, "raise max_completion_length"),
    ("hbpo", {"budgets": [16, 8]}, "ascending"),
    ("hbpo", {"budgets": [4, 8, 16]}, "set num_generations to 3"),
    ("hbpo", {"opening": "Be quick."}, "{budget}"),
    ("elastic", {"thinking_budget": 20}, "set max_completion_length to at least 28"),
    ("elastic", {"answer_budget": 0}, "at least 1 token"),
    ("brpo", {"budgets": [3, 30]}, "lower them or raise max_completion_length"),
    ("brpo", {"budgets": [3, 20]}, "set max_completion_length to at least 28"),
    ("brpo", {"summaries": 3}, "set num_generations to 6"),
    ("brpo", {"per_device_train_batch_size": 3, "num_generations": 6, "summaries": 3, "generation_batch_size": 12, "budgets": [3, 6, 8, 10]}, "multiple"),
    ("brpo", {"prior": "flat"}, "uniform, linear, base"),
    ("brpo", {"baseline": "grpo"}, "brpo, v1, v2, none"),
    ("grpo", {"dataset_name": "no_answers.jsonl"}, "for the answers; name the column"),
    ("grpo", {"dataset_name": "reasoning-gym:no_such_task"}, "correct the name"),
    ("grpo", {"schedule": "step"}, "rex, uba"),
    ("grpo", {"resume_from_checkpoint": "last"}, "start without resume_from_checkpoint"),
    (
        "grpo",
        {"save_strategy": "steps", "save_steps": 3, "steps_per_generation": 2},
        "set save_steps to a multiple of 2",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "message"), BAD)
def test_bad_configurations_stop_with_the_fix(
    name: str,
    options: dict[str, Any],
    message: str,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "no_answers.jsonl").write_text('{"prompt": "Where?"}\n')
    if options.get("dataset_name") == "no_answers.jsonl":
        options = {"dataset_name": str(tmp_path / options["dataset_name"])}

    def loads(*arguments: Any, **others: Any) -> None:
        raise AssertionError("the model was loaded")

    if "resume_from_checkpoint" not in options:
        monkeypatch.setattr("trl.trainer.grpo_trainer.create_model_from_path", loads)
    with pytest.raises(SystemExit) as stopped:
        main(SCRIPTS[name], words(name, tiny, tmp_path / "out", **options))
    assert stopped.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize("name", ["elastic", "brpo"])
def test_continuous_batching_is_refused_where_a_thought_is_closed(
    name: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"use_transformers_continuous_batching": "true"}
    with pytest.raises(SystemExit):
        main(SCRIPTS[name], words(name, tiny, tmp_path, **options))
    assert "use hbpo or grpo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("installed", "options", "message"),
    [
        (False, {}, "pip install 'trl[vllm]'"),
        (True, {"vllm_mode": "server", "transition_phrase": "Time is up."}, "set vllm_mode to colocate"),
    ],
)
def test_rollouts_that_vllm_cannot_make_are_refused(
    installed: bool,
    options: dict[str, str],
    message: str,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("budgetctl.training.checks.find_spec", lambda name: object() if installed else None)
    with pytest.raises(SystemExit):
        main(SCRIPTS["elastic"], words("elastic", tiny, tmp_path, use_vllm="true", **options))
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_tokenizer_without_thought_markers_is_refused(
    tiny: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "plain"
    tokenizer.save_pretrained(folder)
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("<think>", "<a>").replace("</think>", "</a>"))
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(SystemExit):
        main(elastic.ElasticArguments, words("elastic", folder, tmp_path / "out"))
    assert "pass open_text" in capsys.readouterr().err


def test_a_dataset_of_ones_own_is_read(tiny: Path, tmp_path: Path) -> None:
    rows = [{"sum": f"What is {i} + 1?", "total": str(i + 1)} for i in range(4)]
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {
        "dataset_name": path,
        "question_column": "sum",
        "answer_column": "total",
        "instruction": "Be brief.",
    }
    parser = TrlParser((grpo.GRPOArguments, GRPOConfig, ModelConfig))  # type: ignore[arg-type]
    trainer = build(*parser.parse_args_and_config(words("grpo", tiny, tmp_path / "out", **options)))
    first = trainer.train_dataset[0]
    assert first["prompt"] == [{"role": "user", "content": "What is 0 + 1?\nBe brief."}]
    assert first["answer"] == "1"
    close = trainer.processing_class.convert_tokens_to_ids("</think>")
    answer = trainer.processing_class("The answer is 1.").input_ids
    (right,) = trainer.reward_funcs[0]([None], [None], [[30, close, *answer]], answer=["1"], task=["answers"])
    assert right == 1.0
