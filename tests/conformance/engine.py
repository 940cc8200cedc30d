"""Transformers' decoding modes as engines."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import xgrammar
from peft import LoraConfig, get_peft_model
from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation.configuration_utils import CompileConfig, ContinuousBatchingConfig
from transformers.generation.streamers import BaseStreamer

from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.integrations.continuous_batching import report_outputs
from budgetctl.integrations.transformers import Installation, install
from budgetctl.predictors.artifact import PredictorArtifact, describe_model
from budgetctl.structured import StructuredAnswer
from tests.conformance.cases import Case
from tests.conformance.interface import Engine, Row
from tests.conformance.model import EOS, PAD, VOCAB, short_thoughts, thinking_qwen3, word_tokenizer

#: The answer that the grammar of the structured case allows: two or three of these words, then the end.
GRAMMAR = 'root ::= "<21>" "<22>" "<21>"?'


@cache
def draft_model() -> Any:
    """For assisted decoding; it writes other thoughts, so that most drafts are rejected."""
    return thinking_qwen3(seed=12, spread=0.3)


def make_model(peft: bool) -> Any:
    """A model whose greedy thoughts have 2 to 39 tokens; some never end, some are opened again, some call a tool."""
    model = thinking_qwen3(seed=45, spread=0.3)
    if peft:
        torch.manual_seed(5)
        adapter = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = get_peft_model(model, adapter).eval()
    return model


@cache
def subject(delimiters: ThinkingDelimiters, peft: bool = False) -> tuple[Any, Installation]:
    """A model with budgetctl installed; the same weights whatever the markers."""
    model = make_model(peft)
    head = model.get_output_embeddings().weight.detach()
    artifact = PredictorArtifact(short_thoughts().eval(), describe_model(head, delimiters, "tiny"))
    installation = install(model, word_tokenizer(), artifact, delimiters=delimiters, dtype=torch.float64)
    return model, installation


@cache
def plain(peft: bool = False) -> Any:
    """The same model without budgetctl."""
    return make_model(peft)


class Watch(LogitsProcessor):
    """A user's processor beside ours: bans a token, and fails if a row comes with every token banned."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        assert (scores > -torch.inf).any(1).all()
        return scores.index_fill(1, torch.tensor([30]), -torch.inf)


class Keep(BaseStreamer):
    """Keeps what is streamed."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.ids += value.reshape(-1).tolist()

    def end(self) -> None:
        self.ended = True


class Enough(StoppingCriteria):
    """Stops a row at 20 new tokens, as the engine's ``stops_at`` says."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, input_ids: torch.Tensor, scores: Any, **others: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), input_ids.shape[1] - self.width >= 20)


def own_loop(
    model: Any, input_ids: Any, logits_processor: Any, generation_config: Any, **others: Any
) -> torch.Tensor:
    """A ``custom_generate`` callable: greedy, one forward pass over the whole prefix a token."""
    ids, mask = input_ids, others.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    done = torch.zeros(len(ids), dtype=torch.bool)
    while ids.shape[1] < generation_config.max_length and not done.all():
        at = (mask.cumsum(1) - 1).clamp(min=0)
        scores = model(input_ids=ids, attention_mask=mask, position_ids=at).logits[:, -1]
        chosen = torch.where(done, PAD, logits_processor(ids, scores).argmax(1))
        done |= chosen == EOS
        ids = torch.cat([ids, chosen[:, None]], 1)
        mask = torch.cat([mask, mask.new_ones(len(ids), 1)], 1)
    return ids


@dataclass
class Transformers:
    """``generate`` with some options."""

    name: str
    options: Callable[[int], dict[str, Any]] = lambda width: {}
    returned: int = 1
    draws: bool = False
    follows_greedy: bool = False
    alone: bool = False
    stops_at: int | None = None
    peft: bool = False
    watched: bool = False
    can: frozenset[str] = field(default_factory=lambda: frozenset({"structured"}))

    def run(self, case: Case, *, limited: bool, rows: list[int] | None = None) -> list[Row]:
        rows = list(range(len(case.prompts()))) if rows is None else rows
        if self.alone and len(rows) > 1:
            return [found for row in rows for found in self.run(case, limited=limited, rows=[row])]
        model, installation = subject(case.delimiters, self.peft) if limited else (plain(self.peft), None)
        prompts = [case.prompts()[row] for row in rows]
        width = max(map(len, prompts))
        ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
        options: dict[str, Any] = {
            "do_sample": False,
            "max_new_tokens": case.max_new_tokens,
            **self.options(width),
        }
        processors: list[Any] = [Watch()] if self.watched else []
        if limited:
            options |= case.for_rows(rows)
        if "structured" in case.needs and limited:
            processors.append(StructuredAnswer(compiled_grammar(), case.delimiters, prompt_length=width))
        torch.manual_seed(3)
        sequences = model.generate(
            input_ids=ids, attention_mask=(ids != PAD).long(), logits_processor=processors, **options
        )
        streamer = options.get("streamer")
        if streamer is not None:
            assert streamer.ended
            assert streamer.ids == sequences[0].tolist()
        reports = installation.reports(sequences) if installation else [None] * len(sequences)
        return [
            Row(rows[at // self.returned], until_end(ids), report)
            for at, (ids, report) in enumerate(zip(sequences[:, width:].tolist(), reports, strict=True))
        ]


class ContinuousBatching:
    """``generate_batch``: three rows a step for six requests, prompts in several steps."""

    name = "continuous batching"
    can: frozenset[str] = frozenset()
    draws = alone = False
    follows_greedy = True
    stops_at = None

    def run(self, case: Case, *, limited: bool, rows: list[int] | None = None) -> list[Row]:
        rows = list(range(len(case.prompts()))) if rows is None else rows
        model, installation = subject(case.delimiters) if limited else (plain(), None)
        config = copy.deepcopy(model.generation_config)
        config.do_sample, config.max_new_tokens = False, case.max_new_tokens
        sizes = ContinuousBatchingConfig(
            num_blocks=24, page_size=16, max_batch_tokens=48, max_requests_per_batch=3
        )
        outputs = model.generate_batch(
            [case.prompts()[row] for row in rows],
            generation_config=config,
            continuous_batching_config=sizes,
            progress_bar=False,
            **(case.for_rows(rows) if limited else {}),
        )
        reports = report_outputs(installation.batching, outputs) if installation else {}
        ordered = sorted(outputs, key=lambda name: int(name.rsplit("_", 1)[-1]))
        return [
            Row(row, until_end(list(outputs[name].generated_tokens)), reports.get(name))
            for row, name in zip(rows, ordered, strict=True)
        ]


def until_end(ids: list[int]) -> list[int]:
    """New ids up to and with the end of sequence."""
    return ids[: ids.index(EOS) + 1] if EOS in ids else ids


@cache
def compiled_grammar() -> Any:
    words = [f"<{i}>" for i in range(VOCAB)]  # none begins another
    info = xgrammar.TokenizerInfo(words, stop_token_ids=[EOS])
    return xgrammar.GrammarCompiler(info).compile_grammar(GRAMMAR)


def compiled(backend: str) -> dict[str, Any]:
    """Options of a static cache with a forward pass compiled by ``backend``, also on a CPU."""
    config = CompileConfig(backend=backend, mode=None)
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


SAMPLED = {"do_sample": True, "top_k": 0}
GREEDY = Transformers("greedy")
ENGINES: list[Engine] = [
    GREEDY,
    Transformers("sampled", lambda width: SAMPLED, draws=True),
    Transformers(
        "T = 1.5, top-k, top-p",
        lambda width: {**SAMPLED, "temperature": 1.5, "top_k": 20, "top_p": 0.9},
        draws=True,
    ),
    Transformers("two samples", lambda width: {**SAMPLED, "num_return_sequences": 2}, returned=2, draws=True),
    Transformers("beam search", lambda width: {"num_beams": 3}),
    Transformers("beam sampling", lambda width: {**SAMPLED, "num_beams": 2}, draws=True),
    Transformers(
        "assisted",
        lambda width: {"assistant_model": draft_model()},
        alone=True,
        follows_greedy=True,
    ),
    Transformers(
        "prompt lookup", lambda width: {"prompt_lookup_num_tokens": 3}, alone=True, follows_greedy=True
    ),
    Transformers("compiled static cache", lambda width: compiled("eager"), follows_greedy=True),
    Transformers("streamer", lambda width: {"streamer": Keep()}, alone=True, follows_greedy=True),
    Transformers("stopping criteria", lambda width: {"stopping_criteria": [Enough(width)]}, stops_at=20),
    Transformers("other processors", lambda width: {"repetition_penalty": 1.2}, watched=True),
    Transformers("custom_generate", lambda width: {"custom_generate": own_loop}, follows_greedy=True),
    Transformers("LoRA (peft)", peft=True),
    ContinuousBatching(),
]
