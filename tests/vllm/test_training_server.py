"""Rollouts by a vLLM server through TRL's client, all but the transfer of weights, for which TRL needs CUDA."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: run `make test-vllm`, which has an environment of its own")
pytest.importorskip("trl", reason="needs TRL beside vLLM: run `make test-vllm`")

from accelerate import Accelerator
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration

from budgetctl.delimiters import find_delimiters
from budgetctl.reasoner.load import WEIGHTS, load_reasoner
from budgetctl.reasoner.tasks import take_questions
from budgetctl.training.elastic import Elastic
from budgetctl.training.engine import Engine
from budgetctl.training.rollouts import FORCED, NATURAL
from tests.vllm.test_server import wait_for

GROUP, BUDGET, ANSWER = 6, 20, 5


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """As docs/training.md has users start it, on a CPU and by the module: the command fails where vLLM has another name."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["--model", str(WEIGHTS), "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    words += ["--dtype", "float32", "--max-model-len", "512", "--logprobs-mode", "processed_logprobs"]
    words += ["--logits-processors", "budgetctl.integrations.vllm:BudgetForcingLogitsProcessor"]
    log: Path = tmp_path_factory.mktemp("server") / "log"
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_SERVER_DEV_MODE": "1"}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    with (
        log.open("w") as out,
        subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words],
            stdout=out,
            stderr=out,
            env=environment,
        ) as process,
    ):
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


def test_a_server_with_budget_forcing_makes_elastic_rollouts(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of one prompt, in order; the log-probabilities of all tokens but forced ones are the model's."""
    monkeypatch.setattr(VLLMClient, "init_communicator", lambda client, device: None)
    model, tokenizer = load_reasoner()
    generation = VLLMGeneration(
        model, Accelerator(cpu=True), tokenizer, mode="server", server_base_url=server, temperature=1.0
    )

    def generate(prompts: Any, images: None, fields: dict[str, Any], repeats: int) -> Any:
        _, completions, logprobs, _ = generation.generate(prompts, images, repeats)
        return completions, [[token[0] for token in row] for row in logprobs]

    asked = [
        tuple(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": question.prompt}], add_generation_prompt=True, return_dict=False
            )
        )
        for question in take_questions("test", 3, min_level=5)
    ]
    prompts = [prompt for prompt in asked for _ in range(GROUP)]
    method = Elastic(find_delimiters(tokenizer), 64, BUDGET, ANSWER)
    engine = Engine(generate, generation, (tokenizer.eos_token_id,))
    rows = method.engine_rollouts(engine, prompts, [n % GROUP for n in range(len(prompts))], GROUP)
    assert {row.close for row in rows} == {NATURAL, FORCED}
    for prompt, row in zip(prompts, rows, strict=True):
        assert row.prompt_ids[: len(prompt)] == prompt
        assert row.thinking_tokens <= BUDGET
        assert row.answer_tokens <= ANSWER
        assert row.logprobs is not None
        ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]])
        start = len(row.prompt_ids)
        with torch.no_grad():
            scores = model(ids).logits[0, start - 1 : -1].float().log_softmax(1)
        own = scores.gather(1, ids[0, start:, None])[:, 0]
        drawn = torch.tensor(row.sampled) == 1
        torch.testing.assert_close(torch.tensor(row.logprobs)[drawn], own[drawn], rtol=0, atol=1e-4)
