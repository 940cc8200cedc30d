"""Engines that are driven step by step, so that requests arrive between two steps without a clock on the wall."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from budgetctl.evals.load import LoadedModel
from budgetctl.evals.vllm_engines import start_engine
from budgetctl.integrations.transformers import install
from budgetctl.integrations.vllm.served_model import PREDICTOR_VARIABLE
from budgetctl.reasoner.load import PREDICTOR, WEIGHTS
from budgetctl.simulate.step_time import ReplicaShape


class SteppedEngine(Protocol):
    """A continuous batch of requests that have numbers, one step at a time; greedy decoding."""

    def add(self, number: int, prompt: Sequence[int], most: int, thinking_budget: int | None) -> None:
        """Queue a request of token ids, which writes ``most`` tokens at most."""
        ...

    def step(self) -> dict[int, int]:
        """One step; the requests that finished in it, and the tokens that each has written."""
        ...

    def written(self) -> Mapping[int, int]:
        """Tokens that each request has written that runs or waits."""
        ...


class TransformersSteps:
    """The embedded reasoner in transformers' continuous batching, without its thread.

    Args:
        loaded: the reasoner.
        shape: of the batch and the pool.
    """

    def __init__(self, loaded: LoadedModel, shape: ReplicaShape) -> None:
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        model: Any = install(loaded.model, loaded.tokenizer, PREDICTOR).model
        config = model.generation_config
        config.update(do_sample=False, top_k=None, top_p=None, temperature=None, max_new_tokens=1)
        sizes = ContinuousBatchingConfig(
            page_size=shape.block_size,
            num_blocks=shape.blocks,
            max_batch_tokens=shape.max_batch_tokens,
            max_requests_per_batch=shape.max_rows,
            use_async_batching=False,
        )
        self._manager = model.init_continuous_batching(config, sizes)
        self._batch = self._manager.batch_processor = self._manager._create_batch_processor()
        self._manager.current_batch = 0

    def add(self, number: int, prompt: Sequence[int], most: int, thinking_budget: int | None) -> None:
        self._manager.add_request(
            list(prompt), request_id=str(number), max_new_tokens=most, thinking_budget=thinking_budget
        )

    def step(self) -> dict[int, int]:
        self._manager._generation_loop_body(self._batch, bootstrapping=False)
        results, found = self._manager.output_router.output_queue, {}
        while not results.empty():
            output = results.get()
            if output.error:
                raise RuntimeError(f"request {output.request_id} failed: {output.error}")
            if output.is_finished():
                found[int(output.request_id)] = len(output.generated_tokens)
        return found

    def written(self) -> Mapping[int, int]:
        scheduler = self._batch.scheduler
        states = [*scheduler.active_requests.values(), *scheduler.waiting_requests.values()]
        return {int(state.request_id): state.generated_len() for state in states}


class VLLMSteps:
    """The embedded reasoner in a vLLM engine whose core runs in this process.

    Args:
        shape: of the batch and the pool.
    """

    def __init__(self, shape: ReplicaShape) -> None:
        os.environ[PREDICTOR_VARIABLE] = str(PREDICTOR)
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        llm = start_engine(
            str(WEIGHTS),
            processor=True,
            max_num_seqs=shape.max_rows,
            max_num_batched_tokens=shape.max_batch_tokens,
            max_model_len=512,
            block_size=shape.block_size,
            num_gpu_blocks_override=shape.blocks,
        )
        self._engine = llm.llm_engine
        self._scheduler = self._engine.engine_core.engine_core.scheduler

    def add(self, number: int, prompt: Sequence[int], most: int, thinking_budget: int | None) -> None:
        from vllm import SamplingParams

        asked = None if thinking_budget is None else {"thinking_budget": thinking_budget}
        params = SamplingParams(temperature=0.0, max_tokens=most, detokenize=False, extra_args=asked)
        self._engine.add_request(str(number), {"prompt_token_ids": list(prompt)}, params)

    def step(self) -> dict[int, int]:
        outputs = [output for output in self._engine.step() if output.finished]
        return {int(output.request_id): len(output.outputs[0].token_ids) for output in outputs}

    def written(self) -> Mapping[int, int]:
        # Inside, vLLM appends a hyphen and a random text to the name of a request.
        requests = self._scheduler.requests.items()
        return {int(name.split("-")[0]): request.num_output_tokens for name, request in requests}
