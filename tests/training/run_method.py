"""Training runs on the tiny model, for ``accelerate launch``: one for each [method, words of its command line] in the
JSON file that is named."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl import GRPOConfig, ModelConfig, TrlParser

from budgetctl.training import brpo, elastic, grpo, hbpo
from budgetctl.training.script import MethodArguments, build, train
from tests.training.tiny import reward_by_ids

SCRIPTS: dict[str, type[MethodArguments]] = {
    "grpo": grpo.GRPOArguments,
    "hbpo": hbpo.HBPOArguments,
    "elastic": elastic.ElasticArguments,
    "brpo": brpo.BRPOArguments,
}


def run(runs: Sequence[tuple[str, list[str]]]) -> None:
    """Each in turn, with rewards that are functions of the tokens."""
    for name, words in runs:
        classes: Any = (SCRIPTS[name], GRPOConfig, ModelConfig)
        trainer = build(*TrlParser(classes).parse_args_and_config(words))
        reward_by_ids(trainer)
        train(trainer)


if __name__ == "__main__":
    run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
