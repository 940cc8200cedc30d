"""The cases of tests/conformance through a real vLLM engine."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: run `make test-vllm`, which has an environment of its own")

from vllm.exceptions import VLLMValidationError

from budgetctl.closing import Boundaries
from budgetctl.controller import BudgetController
from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.forecast import LengthForecast
from budgetctl.integrations.batching_support import REQUEST_KNOBS
from budgetctl.integrations.transformers import Installation, install
from budgetctl.integrations.vllm import BudgetLogitsProcessor
from budgetctl.integrations.vllm.served_model import ServedModel
from budgetctl.predictors.artifact import PredictorArtifact, describe_model
from budgetctl.predictors.hidden_state import LogitsHiddenState
from budgetctl.telemetry import report_sequences
from tests.conformance.cases import CASES, ROWS, TEMPLATE, Case
from tests.conformance.interface import Row
from tests.conformance.model import EOS, PAD, short_thoughts, thinking_qwen3, word_tokenizer
from tests.conformance.promises import allowed, check
from tests.vllm.engine import processor_of, start, write

#: Knobs of a whole call, and what needs a processor of a grammar of its own, are not what a request can ask for.
ASKED = [case for case in CASES if not case.needs and set(case.knobs) <= set(REQUEST_KNOBS)]


@cache
def model() -> Any:
    """As in the conformance suite, in float32 and with heads that vLLM has a kernel for on the CPU."""
    return thinking_qwen3(seed=41, spread=0.3, head_dim=32).float()


@cache
def subject(delimiters: ThinkingDelimiters) -> Installation:
    """The same weights in transformers."""
    tiny = thinking_qwen3(seed=41, spread=0.3, head_dim=32).float()
    head = tiny.get_output_embeddings().weight.detach()
    predictor = PredictorArtifact(short_thoughts().eval(), describe_model(head, delimiters, "tiny"))
    return install(tiny, word_tokenizer(), predictor, delimiters=delimiters)


def served(delimiters: ThinkingDelimiters) -> ServedModel:
    head = model().get_output_embeddings().weight.detach()
    forecast = LengthForecast(short_thoughts().eval(), LogitsHiddenState(head), head, 2.0)
    return ServedModel(delimiters, Boundaries.from_tokenizer(word_tokenizer(), len(head)), forecast, 0.0, 256)


class Served(BudgetLogitsProcessor):  # type: ignore[misc, valid-type]
    """The processor of a model whose markers are not those of its tokenizer."""

    def read_model(self, vllm_config: Any) -> ServedModel:
        return served(TEMPLATE)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Three rows a step for six requests, prompts in several steps."""
    folder: Path = tmp_path_factory.mktemp("tiny")
    model().save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BUDGETCTL_PREDICTOR", "that of the test")
        yield start(
            str(folder),
            processors=[Served],
            max_model_len=256,
            max_num_seqs=3,
            max_num_batched_tokens=8,
            skip_tokenizer_init=True,
        )


def run(engine: Any, case: Case, *, limited: bool, rows: list[int] | None = None) -> list[Row]:
    chosen = list(range(len(case.prompts()))) if rows is None else rows
    processor_of(engine).serve(served(case.delimiters))
    knobs = [{name: case.knob(name, row) for name in case.knobs} if limited else None for row in chosen]
    prompts = [case.prompts()[row] for row in chosen]
    found = write(
        engine, prompts, knobs, max_tokens=case.max_new_tokens, stop_token_ids=[EOS], detokenize=False
    )
    reports: list[Any] = [None] * len(found)
    if limited:
        reports = [
            report_of(case, row, prompt, ids) for row, prompt, ids in zip(chosen, prompts, found, strict=True)
        ]
    return [Row(row, ids, report) for row, ids, report in zip(chosen, found, reports, strict=True)]


def report_of(case: Case, row: int, prompt: list[int], new_ids: list[int]) -> Any:
    """What can be told from the tokens: vLLM gives a processor no way to tell its client more."""
    asked = {name: case.knob(name, row) for name in case.knobs if name != "effort"}
    controller = BudgetController(case.delimiters, **asked, max_new_tokens=case.max_new_tokens)
    return report_sequences(controller, [[*prompt, *new_ids]], len(prompt))[0]


def greedy(case: Case) -> list[list[int]]:
    """What transformers' greedy decoding writes with the same weights."""
    prompts = case.prompts()
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    sequences = subject(case.delimiters).model.generate(
        input_ids=ids,
        attention_mask=(ids != PAD).long(),
        do_sample=False,
        max_new_tokens=case.max_new_tokens,
        **case.knobs,
    )
    found = sequences[:, width:].tolist()
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in found]


@pytest.mark.parametrize("case", ASKED, ids=lambda case: case.name)
def test_promises(case: Case, engine: Any, count: Any) -> None:
    found, free = run(engine, case, limited=True), run(engine, case, limited=False)
    assert len(found) == len(free) == ROWS
    bitten = 0
    for row, alone in zip(found, free, strict=True):
        check(case, row, alone, case.max_new_tokens, count)
        cap, prompt = allowed(case, row.prompt), case.prompts()[row.prompt]
        used = count(prompt + alone.new_ids, len(prompt), case.delimiters).used
        bitten += cap is not None and used > cap
    assert bitten >= case.bites, "no thought would have broken its limit: the case shows nothing here"
    assert [row.new_ids for row in found] == greedy(case)


@pytest.mark.parametrize(
    "case",
    [case for case in ASKED if case.name in ("mixed budgets", "efforts", "close of several tokens")],
    ids=lambda case: case.name,
)
def test_a_row_alone_and_in_a_batch(case: Case, engine: Any) -> None:
    together = run(engine, case, limited=True)
    alone = [row for at in range(ROWS) for row in run(engine, case, limited=True, rows=[at])]
    assert [row.new_ids for row in together] == [row.new_ids for row in alone]


@pytest.mark.parametrize("value", [-1, 2.5, "many"])
def test_a_budget_that_is_none_is_refused(value: Any, engine: Any) -> None:
    with pytest.raises(VLLMValidationError, match="thinking_budget"):
        run(engine, Case("refused", knobs={"thinking_budget": value}), limited=True)
