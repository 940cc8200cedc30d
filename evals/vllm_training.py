"""A training script with rollouts by vLLM on a CPU: ``python -m budgetctl.evals.vllm_training elastic --config FILE``.

The options are those of the script. TRL's colocated engine starts on a CPU as it is; what stops there is
``VLLMGeneration.sync_weights``, which loads parameters one by one into the model that serves: on a CPU vLLM has packed the
weights of linear layers and dropped the parameters. vLLM's own ``reload_weights``, which packs them again, takes its
place here. (``vllm_mode: server`` cannot be helped: its weights travel by NCCL, which TRL refuses without CUDA.)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from unittest.mock import patch

#: Environment of the engine, where nothing else is set: GiB of its cache, and no logging of its start.
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
#: Scripts of ``budgetctl.training``, and their classes of options.
SCRIPTS = {
    "grpo": "GRPOArguments",
    "hbpo": "HBPOArguments",
    "elastic": "ElasticArguments",
    "brpo": "BRPOArguments",
}


@contextmanager
def vllm_on_cpu(**options: Any) -> Iterator[None]:
    """While it lasts, TRL's colocated vLLM works on a CPU, in float32 as the trainer.

    Args:
        options: further arguments of vLLM's ``LLM``.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from trl.generation.vllm_generation import VLLMGeneration

    from budgetctl.training.engine import vllm_options

    with (
        patch.object(VLLMGeneration, "sync_weights", reload_weights),
        vllm_options({"dtype": "float32"} | options),
    ):
        yield


def reload_weights(generation: Any) -> None:
    """In place of ``VLLMGeneration.sync_weights``, of an engine in this process on a CPU."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    runner = generation.llm.llm_engine.model_executor.driver_worker.model_runner
    runner.reload_weights(generation._iter_named_params())
    for layer in runner.model.modules():
        # A head that shares the weight of the embedding has packed it apart, and is not told.
        if isinstance(layer, ParallelLMHead):
            layer.quant_method.process_weights_after_loading(layer)
    generation.llm.reset_prefix_cache()


def main(argv: list[str]) -> None:
    """Run the script."""
    if not argv or argv[0] not in SCRIPTS:
        sys.stderr.write(f"error: expected one of {', '.join(SCRIPTS)} and its options\n")
        raise SystemExit(2)
    name, *words = argv
    with vllm_on_cpu():
        from budgetctl.training import script

        arguments = getattr(import_module(f"budgetctl.training.{name}"), SCRIPTS[name])
        script.main(arguments, [*words, "--use_vllm", "true", "--vllm_mode", "colocate"])


if __name__ == "__main__":
    main(sys.argv[1:])
