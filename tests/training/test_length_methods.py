"""L1, e1, ThinkDial and Knapsack RL: the questions they ask, their recipes, resumed runs, two processes, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback
from trl import GRPOConfig

from budgetctl.reasoner.load import WEIGHTS
from budgetctl.training.budget_prompts import MODES
from budgetctl.training.e1 import E1Arguments
from budgetctl.training.knapsack_sampler import KnapsackSampler
from budgetctl.training.l1 import L1Arguments
from budgetctl.training.rewards import accuracy
from budgetctl.training.script import main, train
from budgetctl.training.tasks import embedded_tasks
from budgetctl.training.thinkdial_rl import ThinkDialArguments
from budgetctl.training.trainer import BudgetGRPOTrainer
from tests.training.run_length_method import OWN, SCRIPTS, looks_right, make
from tests.training.tiny import OPTIONS, command_line

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "training" / "recipes"


def words(name: str, model: Path, out: Path, **options: Any) -> list[str]:
    return command_line({**OPTIONS, "model_name_or_path": model, "output_dir": out, **OWN[name], **options})


def test_l1_names_its_targets_in_the_prompt() -> None:
    questions = embedded_tasks(20)
    asked = L1Arguments(variant="max", least_tokens=10, most_tokens=30, targets=3).prepare(questions, seed=4)
    assert len(asked) == 60
    for row, original in zip(asked, [q for q in questions for _ in range(3)], strict=True):
        sentence = f"Think for maximum {row['target_tokens']} tokens."
        assert row["prompt"][0]["content"] == f"{original['prompt'][0]['content']} {sentence}"
        assert row["question_id"] == original["question_id"]
    targets = list(asked["target_tokens"])
    assert set(targets) <= set(range(10, 31))
    assert len(set(targets)) > 12
    again = L1Arguments(least_tokens=10, most_tokens=30, targets=3)
    assert list(again.prepare(questions, seed=4)["target_tokens"]) == targets
    assert list(again.prepare(questions, seed=5)["target_tokens"]) != targets
    assert asked[0]["prompt"][0]["content"] != again.prepare(questions, seed=4)[0]["prompt"][0]["content"]


def test_e1_asks_at_full_effort_first() -> None:
    questions = embedded_tasks(20)
    asked = E1Arguments(efforts=[0.25, 1.0, 0.5]).prepare(questions, seed=1)
    names = [row["question_id"] for row in asked]
    assert names == [name for name in names[::3] for _ in range(3)]
    assert set(names) == set(questions["question_id"])
    assert names[::3] != list(questions["question_id"])
    assert list(asked["effort"]) == [1.0, 0.5, 0.25] * 20
    assert asked[1]["prompt"][0]["content"].endswith("Reasoning effort: 50%.")
    options = GRPOConfig(output_dir="x", report_to="none", use_cpu=True, bf16=False)
    E1Arguments().check(options)
    assert options.shuffle_dataset is False


def test_thinkdial_asks_in_the_modes_of_its_phase() -> None:
    questions = embedded_tasks(5)
    for phase, modes in ((1, ["high"]), (2, ["high", "medium", "low"])):
        asked = ThinkDialArguments(phase=phase).prepare(questions, seed=0)
        assert list(asked["mode"]) == modes * 5
        for row in asked:
            assert row["prompt"][0] == {"role": "system", "content": MODES[row["mode"]].system}
            assert row["prompt"][1]["role"] == "user"


@pytest.mark.parametrize("name", SCRIPTS)
def test_recipes_train_the_embedded_reasoner(name: str, tmp_path: Path) -> None:
    options = {"output_dir": tmp_path, "max_steps": 2, "learning_rate": 1e-3, "disable_tqdm": "true"}
    main(SCRIPTS[name], ["--config", str(RECIPES / f"{name}_tiny.yaml"), *command_line(options)])
    before, after = load_file(WEIGHTS / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in after.values())
    if name in ("l1", "thinkdial"):  # where rewards differ whatever is sampled
        assert any(not torch.equal(before[n].float(), after[n]) for n in after)
    settings = json.loads((tmp_path / "generation_config.json").read_text())
    expected = {
        "l1": {"trained_lengths": [16, 64], "length_prompt": "Think for {tokens} tokens."},
        "e1": {"trained_efforts": [0.5, 1.0], "effort_prompt": "Reasoning effort: {percent}%."},
        "thinkdial": {"mode_prompts": {mode: entry.system for mode, entry in MODES.items()}},
        "knapsack": {},
    }[name]
    assert settings.items() >= expected.items()


class Killed(TrainerCallback):
    """Ends a run as Ctrl-C would."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


def run(name: str, model: Path, out: Path, kill: bool = False, **options: Any) -> BudgetGRPOTrainer:
    saving = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    trainer = make(name, words(name, model, out, **saving, **options))
    if kill:
        trainer.add_callback(Killed())
        with pytest.raises(KeyboardInterrupt):
            train(trainer)
    else:
        train(trainer)
    return trainer


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in SCRIPTS),
        ("knapsack", {"questions": 6, "seed": 2}),  # the checkpoint lies inside an epoch
    ],
)
def test_a_killed_run_ends_with_the_same_weights(
    name: str, options: dict[str, Any], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy, "is_correct", looks_right)
    whole = run(name, tiny, tmp_path / "whole", **options)
    run(name, tiny, tmp_path / "cut", kill=True, **options)
    run(name, tiny, tmp_path / "cut", resume_from_checkpoint="last", **options)
    start = load_file(tiny / "model.safetensors")
    expected, found = (load_file(tmp_path / part / "model.safetensors") for part in ("whole", "cut"))
    assert any(not torch.equal(start[n], weights) for n, weights in expected.items())
    for n, weights in expected.items():
        assert torch.equal(found[n], weights), n
    states = json.loads((tmp_path / "whole" / "checkpoint-6" / "trainer_state.json").read_text())
    resumed = json.loads((tmp_path / "cut" / "checkpoint-6" / "trainer_state.json").read_text())
    key = "stateful_callbacks"
    assert states[key].get("CheckpointedState") == resumed[key].get("CheckpointedState")
    if name == "e1":
        assert len(states[key]["CheckpointedState"]["attributes"]["effort"]) > 2
        assert any(entry.get("rewards/effort/mean", 0) > 0 for entry in whole.state.log_history)
    if name == "knapsack":
        most = [entry["knapsack/most_rollouts"] for entry in whole.state.log_history if "loss" in entry]
        assert most[0] == 4
        assert max(most) > 4


def test_knapsack_rows_of_a_prompt_get_the_advantages_of_their_group(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy, "is_correct", looks_right)
    trainer = make("knapsack", words("knapsack", tiny, tmp_path, learning_rate=0.0, scale_rewards="none"))
    monkeypatch.setattr(KnapsackSampler, "_draw", lambda self, epoch: iter([0] * 6 + [1] * 2))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    inner = trainer.compute_loss

    def compute_loss(model: Any, inputs: Any, **options: Any) -> Any:
        seen.append((trainer._all_rewards.clone(), inputs["advantages"][:, 0].clone()))
        return inner(model, inputs, **options)

    monkeypatch.setattr(trainer, "compute_loss", compute_loss)
    trainer.args.max_steps = 1
    trainer.train()
    ((rewards, advantages),) = seen
    expected = torch.cat([rewards[:6] - rewards[:6].mean(), rewards[6:] - rewards[6:].mean()])
    # TRL shuffles the rows of a generation batch before it takes steps with them.
    torch.testing.assert_close(advantages.sort().values, expected.sort().values)
    assert len(set(rewards[:6].tolist())) == 2


@pytest.mark.parametrize("name", ["e1", "knapsack"])
def test_evaluation_has_its_own_questions_and_groups(
    name: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy, "is_correct", looks_right)
    options = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 4, "questions": 12}
    trainer = make(name, words(name, tiny, tmp_path, **{**OWN[name], **options, "eval_share": 0.3}))
    train(trainer)
    held_out = set(trainer.eval_dataset["question_id"])
    assert held_out
    assert not held_out & set(trainer.train_dataset["question_id"])
    (entry,) = (entry for entry in trainer.state.log_history if "eval_reward" in entry)
    assert 0 <= entry["eval_rewards/accuracy/mean"] <= 1
    if name == "knapsack":  # equal groups, and no pass rate of a question that is not trained on
        assert entry["eval_knapsack/most_rollouts"] == 4
        assert not held_out & set(trainer.rates.state_dict()["means"])


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")
def test_two_processes_take_the_step_of_one(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups lie on both processes; means, pass rates and lengths are gathered before they are used."""

    def runs(out: Path, processes: int) -> list[tuple[str, list[str]]]:
        share = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2 // processes}
        share |= {"optim": "sgd", "learning_rate": 0.1, "max_steps": 4}
        # One group of 8 rows, or two that become uneven, over two processes of 4 rows each.
        sizes = {"e1": 8, "thinkdial": 8, "knapsack": 4}
        return [
            (name, words(name, tiny, out / name, num_generations=size, **share))
            for name, size in sizes.items()
        ]

    plan = tmp_path / "runs.json"
    plan.write_text(json.dumps(runs(tmp_path / "two", 2)))
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_machines",
        "1",
        "--num_processes",
        "2",
    ]
    launch += ["--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
    done = subprocess.run(
        [sys.executable, *launch, "-m", "tests.training.run_length_method", str(plan)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    monkeypatch.setattr(accuracy, "is_correct", looks_right)
    start = load_file(tiny / "model.safetensors")
    for name, options in runs(tmp_path / "one", 1):
        train(make(name, options))
        one, two = (load_file(tmp_path / count / name / "model.safetensors") for count in ("one", "two"))
        moved = max(float((one[n] - start[n]).abs().max()) for n in start)
        assert moved > 1e-3, name
        for n in start:
            torch.testing.assert_close(two[n], one[n], rtol=1e-4, atol=1e-4 * moved)


BAD = [
    ("l1", {"variant": "most"}, "expected one of exact, max"),
    ("l1", {"most_tokens": 30}, "most <= max_completion_length"),
    ("l1", {"least_tokens": 0}, "expected 1 <= least"),
    ("l1", {"targets": 0}, "at least 1 for each question"),
    ("l1", {"count": "answer"}, "total, thinking"),
    ("l1", {"lcpo_alpha": -1}, "expected 0 or more"),
    ("e1", {"efforts": [0.5, 0.25]}, "and 1 among them"),
    ("e1", {"efforts": [1.0, 1.5]}, "above 0 and up to 1"),
    ("e1", {"memory": 0}, "at least 1 rollout"),
    ("thinkdial", {"phase": 3}, "expected 1 or 2"),
    ("thinkdial", {"leak_bonus": -1}, "expected 0 or more"),
    ("knapsack", {"most_rollouts": 3}, "num_generations <= most_rollouts"),
    ("knapsack", {"least_rollouts": 1}, "2 <= least_rollouts"),
    ("knapsack", {"use_transformers_continuous_batching": "true"}, "with knapsack_rl"),
]


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
    def loads(*arguments: Any, **others: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("trl.trainer.grpo_trainer.create_model_from_path", loads)
    with pytest.raises(SystemExit) as stopped:
        main(SCRIPTS[name], words(name, tiny, tmp_path / "out", **options))
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
