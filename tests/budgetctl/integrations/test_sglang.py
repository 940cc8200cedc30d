"""The SGLang adapter under a scheduler that calls it as SGLang's sampler does; with the package's own base class where
it is installed. No SGLang server is run here: it needs a GPU.
"""

from __future__ import annotations

import json
import pickle
from array import array
from collections.abc import Iterator
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from budgetctl.errors import BudgetError, PredictorError
from budgetctl.integrations import sglang as adapter
from budgetctl.integrations.output_head import read_output_embedding
from budgetctl.integrations.transformers import Installation, install
from budgetctl.reasoner.load import PREDICTOR, load_reasoner

QUESTIONS = (
    "A dial shows 7: turn +5 -2 +4 -3. Where does it stop?",
    "A dial shows 3: turn +4 -1. Where does it stop?",
)
ASKED: list[dict[str, Any]] = [
    {"thinking_budget": 5},
    {"effort": "low"},
    {},
    {"effort": 0.5, "thinking_budget": 20},
    {"min_thinking_tokens": 12, "thinking_budget": 14},
    {"thinking_budget": 1},
]
LENGTH = 60


@pytest.fixture(scope="module")
def installation() -> Installation:
    model, tokenizer = load_reasoner(dtype=torch.float64)
    model.generation_config.update(do_sample=False, top_k=None, top_p=None, temperature=None)
    return install(model, tokenizer, PREDICTOR, dtype=torch.float64)


@pytest.fixture(autouse=True)
def served(installation: Installation) -> Iterator[None]:
    adapter.use(
        adapter.SglangBudgets(installation.delimiters, installation.boundaries, installation.forecast)
    )
    yield
    adapter.use(None)


def request_of(name: int, prompt: list[int]) -> Any:
    sampling = SimpleNamespace(max_new_tokens=LENGTH, temperature=1.0, top_k=1)
    return SimpleNamespace(
        rid=str(name),
        origin_input_ids=array("q", prompt),
        output_ids=array("q"),
        sampling_params=sampling,
        inflight_middle_chunks=0,
        to_finish=None,
    )


def prompt_of(installation: Installation, number: int) -> list[int]:
    text = [{"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]}]
    return list(installation.tokenizer.apply_chat_template(text, add_generation_prompt=True).input_ids)


def serve(installation: Installation, processor: Any) -> list[list[int]]:
    """Greedy decoding of all that is asked; a request joins every other step, rows change their places, and one is sent
    back once and read again in two chunks."""
    requests = [request_of(number, prompt_of(installation, number)) for number in range(len(ASKED))]
    params = [knobs | {"__req__": request} for knobs, request in zip(ASKED, requests, strict=True)]
    stop = installation.delimiters.eos_ids
    step = 0
    while True:
        joined = list(range(min(len(requests), 1 + step // 2)))
        running = [
            n
            for n in joined
            if len(requests[n].output_ids) < LENGTH and not {*requests[n].output_ids[-1:]} & {*stop}
        ]
        if not running and len(joined) == len(requests):
            return [request.output_ids.tolist() for request in requests]
        if step % 3:
            running.reverse()
        step += 1
        if not running:
            continue
        rows = []
        for n in running:
            ids = [*requests[n].origin_input_ids, *requests[n].output_ids]
            chunked = n == 0 and step == 4
            requests[n].inflight_middle_chunks = int(chunked)
            with torch.no_grad():
                seen = torch.tensor([ids[: len(ids) // 2] if chunked else ids])
                rows.append(installation.model(seen).logits[0, -1])
        steered = processor(torch.stack(rows), [params[n] for n in running])
        for n, row in zip(running, steered, strict=True):
            if not requests[n].inflight_middle_chunks:
                requests[n].output_ids.append(int(row.argmax()))


def test_the_same_tokens_as_generate(installation: Installation) -> None:
    found = serve(installation, adapter.BudgetLogitProcessor())
    for number, knobs in enumerate(ASKED):
        prompt = torch.tensor([prompt_of(installation, number)])
        expected = installation.model.generate(prompt, max_new_tokens=LENGTH, **knobs)
        assert found[number] == expected[0, prompt.shape[1] :].tolist(), knobs


def test_rows_without_a_knob_are_the_same_bits(installation: Installation) -> None:
    logits = torch.randn(2, installation.boundaries.line.shape[0], dtype=torch.float64)
    processor = adapter.BudgetLogitProcessor()
    request = request_of(0, prompt_of(installation, 0))
    assert processor(logits, None) is logits
    assert processor(logits, [None, {"__req__": request, "other": 1}]) is logits  # type: ignore[list-item]
    steered = processor(logits, [{"__req__": request, "thinking_budget": 0}, {}])
    assert torch.equal(steered[1], logits[1])
    assert not torch.equal(steered[0], logits[0])


def test_a_bad_request_ends_alone(installation: Installation) -> None:
    good, bad = (request_of(n, prompt_of(installation, n)) for n in range(2))
    logits = torch.randn(2, installation.boundaries.line.shape[0], dtype=torch.float64)
    params = [{"__req__": bad, "thinking_budget": -3}, {"__req__": good, "thinking_budget": 0}]
    steered = adapter.BudgetLogitProcessor()(logits, params)
    assert torch.equal(steered[0], logits[0])
    assert torch.isfinite(steered[1]).sum() == 1
    assert "thinking_budget" in str(getattr(bad.to_finish, "message", bad.to_finish))
    assert good.to_finish is None


def test_drafts_and_overlapped_steps_are_refused(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.randn(2, installation.boundaries.line.shape[0], dtype=torch.float64)
    request = request_of(0, prompt_of(installation, 0))
    params = {"__req__": request, "thinking_budget": 5}
    assert adapter.BudgetLogitProcessor()(logits, [params, params]) is logits
    assert "speculative" in str(getattr(request.to_finish, "message", request.to_finish))
    monkeypatch.setattr(adapter, "_overlaps", lambda: True)
    assert adapter.BudgetLogitProcessor()(logits[:1], [params]).shape == (1, logits.shape[1])
    assert "--disable-overlap-schedule" in str(getattr(request.to_finish, "message", request.to_finish))


def test_what_a_client_sends() -> None:
    sent = bytes.fromhex(json.loads(adapter.processor_string())["callable"])
    assert pickle.loads(sent) is adapter.BudgetLogitProcessor
    assert len(sent) < 200
    assert adapter.custom_params(effort="low", thinking_budget=None) == {"effort": "low"}
    with pytest.raises(BudgetError, match="no knob"):
        adapter.custom_params(budget=5)
    with pytest.raises(BudgetError, match="thinking_budget"):
        adapter.custom_params(thinking_budget=-3)


def test_the_server_finds_its_model_in_the_environment(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    from budgetctl.reasoner.load import WEIGHTS

    adapter.use(None)
    request = request_of(0, prompt_of(installation, 0))
    logits = torch.randn(1, installation.boundaries.line.shape[0])
    params = [{"__req__": request, "effort": "low"}]
    monkeypatch.delenv("BUDGETCTL_MODEL", raising=False)
    adapter.BudgetLogitProcessor()(logits, params)
    assert "BUDGETCTL_MODEL" in str(getattr(request.to_finish, "message", request.to_finish))
    monkeypatch.setenv("BUDGETCTL_MODEL", str(WEIGHTS))
    monkeypatch.setenv("BUDGETCTL_PREDICTOR", str(PREDICTOR))
    request.to_finish = None
    with torch.no_grad():
        ids = torch.tensor([request.origin_input_ids.tolist()])
        logits = installation.model(ids).logits[:, -1].float()
    adapter.BudgetLogitProcessor()(logits, params)
    assert request.to_finish is None
    budgets = adapter.server_budgets()
    assert budgets.forecast is not None
    assert installation.forecast is not None
    expected = installation.forecast.natural_length(
        installation.forecast.outlook(logits.double(), own_logits=True)
    )
    ours = budgets.forecast.natural_length(budgets.forecast.outlook(logits, own_logits=True))
    assert ours.item() == pytest.approx(expected.item(), rel=1e-3)


def test_a_checkpoint_without_an_output_embedding_is_refused(tmp_path: Any) -> None:
    with pytest.raises(PredictorError, match="no output embedding"):
        read_output_embedding(tmp_path)


@pytest.mark.skipif(
    find_spec("sglang") is None, reason="sglang is not installed; the tests above call as its sampler does"
)
def test_it_is_one_of_sglangs_own_processors() -> None:
    from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor

    assert issubclass(adapter.BudgetLogitProcessor, CustomLogitProcessor)
    for text in (adapter.processor_string(), adapter.BudgetLogitProcessor.to_str()):
        assert isinstance(CustomLogitProcessor.from_str(text), adapter.BudgetLogitProcessor)
