"""Methods of the prompt on the tiny model with rewards of their own, here or under ``accelerate launch``: ``run_length_method.py RUNS.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from trl import GRPOConfig, ModelConfig, TrlParser

from budgetctl.training import e1, knapsack_rl, l1, thinkdial_rl
from budgetctl.training.rewards import accuracy
from budgetctl.training.script import MethodArguments, build, train
from budgetctl.training.trainer import BudgetGRPOTrainer

SCRIPTS: dict[str, type[MethodArguments]] = {
    "l1": l1.L1Arguments,
    "e1": e1.E1Arguments,
    "thinkdial": thinkdial_rl.ThinkDialArguments,
    "knapsack": knapsack_rl.KnapsackArguments,
}
OWN: dict[str, dict[str, Any]] = {
    "l1": {"least_tokens": 4, "most_tokens": 24, "lcpo_alpha": 0.02},
    "e1": {"efforts": [1.0, 0.5]},
    "thinkdial": {},
    "knapsack": {"least_rollouts": 2, "most_rollouts": 6, "questions": 4},
}


def looks_right(text: str, answer: str, task: str, entry: str) -> bool:
    """Whatever the tiny model writes, some of it is right."""
    return sum(map(ord, text)) % 3 > 0


def make(name: str, options: list[str]) -> BudgetGRPOTrainer:
    classes: Any = (SCRIPTS[name], GRPOConfig, ModelConfig)
    return build(*TrlParser(classes).parse_args_and_config(options))


if __name__ == "__main__":
    accuracy.is_correct = looks_right
    for method, words in json.loads(Path(sys.argv[1]).read_text()):
        train(make(method, words))
