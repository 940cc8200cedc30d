"""Answer requests: mixed limits in one left-padded batch, each row sampled from its own seed."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import LogitsProcessorList, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from budgetctl.cli.kv import kv_cache
from budgetctl.cli.plan import plan_accounts, plan_prompts
from budgetctl.cli.requests import Request, Settings
from budgetctl.controller import BudgetController
from budgetctl.evals.load import LoadedModel
from budgetctl.exit_probe import ProbeCost
from budgetctl.guidance import guided_temperature
from budgetctl.kv.held import cache_bytes
from budgetctl.plan.knob import follow_plans, write_notes
from budgetctl.sampling import SeededSampler
from budgetctl.segments import split_sequence
from budgetctl.telemetry import report_sequences

StreamerFactory = Callable[[BudgetController], BaseStreamer]


@dataclass(frozen=True)
class Answer:
    """One request answered: ``text`` is all that was generated, the rest as in ``ThoughtReport``; ``seconds`` is the
    time that its batch took, ``kv_peak_bytes`` what the batch held of keys and values at most, ``probe_cost`` what an early
    exit cost, as in ``ProbeCost``, ``plan`` what was followed, with what each step used."""

    prompt: str
    thinking: str
    answer: str
    text: str
    thinking_tokens: int
    answer_tokens: int
    thinking_budget: int | None
    predicted_tokens: float | None
    close: str
    leaked: bool
    guidance_strength: float
    note_tokens: int
    seconds: float
    kv_peak_bytes: int | None = None
    probe_cost: dict[str, int] | None = None
    plan: dict[str, object] | None = None

    def as_dict(self) -> dict[str, object]:
        """The fields as JSON values; ``probe_cost`` only where there was an early exit to pay for, ``plan`` only where one was
        asked for."""
        fields = asdict(self)
        if self.probe_cost is None:
            del fields["probe_cost"]
        if self.plan is None:
            del fields["plan"]
        return fields


def answer(
    loaded: LoadedModel,
    requests: Sequence[Request],
    settings: Settings,
    *,
    streamer_for: StreamerFactory | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Answer]:
    """Answer all requests in batches; row i draws from the seed ``settings.seed + i``, whatever its batch.

    ``progress`` is called with the number of requests answered in each batch.
    """
    answers: list[Answer] = []
    for start in range(0, len(requests), settings.batch_size):
        batch = requests[start : start + settings.batch_size]
        seeds = [settings.seed + start + i for i in range(len(batch))]
        answers += answer_batch(loaded, batch, settings, seeds, streamer_for=streamer_for)
        progress(len(batch))
    return answers


def answer_batch(
    loaded: LoadedModel,
    requests: Sequence[Request],
    settings: Settings,
    seeds: Sequence[int],
    *,
    steered: bool = True,
    streamer_for: StreamerFactory | None = None,
) -> list[Answer]:
    """Answer requests in one batch; ``steered=False`` is the hard cut (no forecast, no closing window)."""
    started = time.perf_counter()
    model, tokenizer = loaded.model, loaded.tokenizer
    temperature = settings.temperature
    if temperature is None:
        own = model.generation_config
        temperature = (own.temperature or 1.0) if own.do_sample else 0.0
    asked = [settings.plan if r.plan == "shared" else r.plan for r in requests]
    plans = plan_prompts(loaded, asked if steered else [None] * len(requests), [r.prompt for r in requests])
    input_ids, mask, pad = _left_padded(tokenizer, [p.prompt for p in plans], model.device)
    width = input_ids.shape[1]
    controller = _controller(loaded, requests, settings, width, temperature, steered)
    follow_plans(controller, [p.plan for p in plans], tokenizer, len(requests))
    if settings.budget_notes and controller.steps is not None:
        write_notes(controller, True, tokenizer, len(requests))
    processors = LogitsProcessorList([controller])
    if temperature > 0:
        processors.append(SeededSampler(seeds, width, temperature))
    caching = kv_cache(model, controller, settings.kv if steered else None, mask, settings.max_new_tokens)
    with caching as options, torch.inference_mode():
        output = model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            logits_processor=processors,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=settings.max_new_tokens,
            pad_token_id=pad,
            streamer=None if streamer_for is None else streamer_for(controller),
            return_dict_in_generate=True,
            **options,
        )
    sequences = output.sequences.cpu()
    reports = report_sequences(controller, sequences, width)
    costs: list[ProbeCost | None] = [None] * len(requests)
    if controller.early_exit is not None:
        costs = list(controller.early_exit.account(sequences))
    accounts = plan_accounts(controller, sequences, width, reports)
    seconds = time.perf_counter() - started
    answers = []
    rows = zip(requests, sequences.tolist(), reports, costs, accounts, strict=True)
    for request, row, report, cost, account in rows:
        parts = split_sequence(row, width, controller.delimiters)
        counts = report.as_dict()
        predicted = report.predicted_tokens
        counts["predicted_tokens"] = None if predicted is None else round(predicted, 1)
        answers.append(
            Answer(
                prompt=request.prompt,
                thinking=tokenizer.decode(list(parts.thought)).strip(),
                answer="\n\n".join(tokenizer.decode(list(ids)).strip() for ids in parts.messages),
                text=tokenizer.decode(_until_end(row[width:], loaded.delimiters.eos_ids)),
                seconds=round(seconds, 3),
                kv_peak_bytes=cache_bytes(output.past_key_values),
                probe_cost=None if cost is None else asdict(cost),
                plan=account,
                **counts,  # type: ignore[arg-type]
            )
        )
    return answers


def _controller(
    loaded: LoadedModel,
    requests: Sequence[Request],
    settings: Settings,
    width: int,
    temperature: float,
    steered: bool,
) -> BudgetController:
    """The controller of one batch whose prompts are ``width`` tokens wide."""
    rows: dict[str, Any] = {
        # A target contradicts an effort, and auto is none.
        "effort": [None if r.budget.effort.name == "auto" else r.budget.effort for r in requests],
        "thinking_budget": [r.budget.cap for r in requests],
        "min_thinking_tokens": [r.min_thinking_tokens for r in requests],
        "thinking_target": [r.thinking_target for r in requests],
        "target_tolerance": [r.target_tolerance for r in requests],
        "max_new_tokens": settings.max_new_tokens,
        "answer_reserve": settings.answer_reserve,
        "temperature": guided_temperature(temperature),
        "greedy": temperature == 0,
    }
    if not steered:
        return BudgetController(loaded.delimiters, prompt_length=width, **rows)
    config = copy.copy(loaded.model.generation_config)
    for name, value in settings.knobs().items():
        setattr(config, name, value)
    return loaded.installation.controller_for(config, width, len(requests), **rows)


def render_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[str]:
    """Each prompt as one turn of the chat template, ready for the thought; as it is where there is no template."""
    if not tokenizer.chat_template:
        return [(tokenizer.bos_token or "") + prompt for prompt in prompts]
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        for prompt in prompts
    ]


def _left_padded(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Prompt ids [B, T], their mask [B, T] and the padding id, whether or not the tokenizer has one."""
    rows = tokenizer(render_prompts(tokenizer, prompts), add_special_tokens=False).input_ids
    pad = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask, pad


def _until_end(ids: list[int], eos_ids: Sequence[int]) -> list[int]:
    return ids[: next((at for at, token in enumerate(ids) if token in eos_ids), len(ids))]
