"""One method's training on the tiny model, for ``accelerate launch``: ``run_method.py METHOD OPTIONS...``."""

from __future__ import annotations

import sys
from typing import Any

from trl import GRPOConfig, ModelConfig, TrlParser

from budgetctl.training import brpo, elastic, grpo, hbpo
from budgetctl.training.script import build, train
from tests.training.tiny import reward_by_ids

ARGUMENTS = {
    "grpo": grpo.GRPOArguments,
    "hbpo": hbpo.HBPOArguments,
    "elastic": elastic.ElasticArguments,
    "brpo": brpo.BRPOArguments,
}

if __name__ == "__main__":
    for method in sys.argv[1].split(","):
        classes: Any = (ARGUMENTS[method], GRPOConfig, ModelConfig)
        options = [word.replace("METHOD", method) for word in sys.argv[2:]]
        trainer = build(*TrlParser(classes).parse_args_and_config(options))
        reward_by_ids(trainer)
        train(trainer)
