"""transformers as an engine of evaluations: a left-padded batch, noise by row, any of budgetctl's knobs."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteriaList

from budgetctl.controller import BudgetController
from budgetctl.errors import EvalError
from budgetctl.evals.baselines import HardCut
from budgetctl.evals.harness.knobs import knobs_of_rows
from budgetctl.evals.harness.method import Completion, prompt_ids
from budgetctl.evals.harness.watching import StartForecast, StopAfter, Watched, WatchedCut, end_of
from budgetctl.evals.load import LoadedModel
from budgetctl.guidance import guided_temperature
from budgetctl.integrations.kv_hooks import begin_cache
from budgetctl.kv.held import cache_bytes
from budgetctl.sampling import SeededSampler
from budgetctl.segments import Segments, split_sequence
from budgetctl.telemetry import ThoughtReport, report_sequences


class TransformersEngine:
    """Runs a transformers model as :class:`~budgetctl.evals.harness.method.Engine` says.

    Args:
        loaded: model, tokenizer, markers, and the length predictor where there is one.
        temperature: of sampling; greedy decoding has none.
        steered: note the tokens of the thought at which guidance changed the likeliest one, for the report. It costs two
            more looks for the likeliest token a step.
    """

    def __init__(self, loaded: LoadedModel, *, temperature: float = 1.0, steered: bool = False) -> None:
        self.loaded = loaded
        self.model = loaded.model
        self.tokenizer = loaded.tokenizer
        self.delimiters = loaded.delimiters
        self.temperature = temperature
        self.steered = steered
        # A real model's own padding id is not always set.
        ids = (loaded.tokenizer.pad_token_id, loaded.tokenizer.eos_token_id, 0)
        self.pad = next(i for i in ids if i is not None)

    def prompt(self, question: str, *, prefill: str = "") -> list[int]:
        """Ids of the chat template's rendering of one question, ready for the thought; ``prefill`` is appended."""
        return prompt_ids(self.tokenizer, question, prefill)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        seeds: Sequence[int] | None,
        max_new_tokens: int,
        knobs: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        hard_cut: int | None = None,
        offsets: Sequence[int] | None = None,
        stop_ids: Sequence[Sequence[int]] = (),
        processor: Callable[[int], LogitsProcessor] | None = None,
    ) -> list[Completion]:
        """Continue each prompt, in one batch; arguments as of the protocol, and ``processor``, which makes a logits
        processor from the padded width of the prompts: it gets the model's own logits, before anything else.

        Raises:
            EvalError: a hard cut beside knobs, an unknown knob, or not one seed, offset or mapping of knobs a prompt.
            BudgetctlError: for a knob that is out of range or cannot be kept by this model.
        """
        rows = len(prompts)
        if not rows:
            return []
        asked = knobs_of_rows(knobs, rows)
        if asked and hard_cut is not None:
            raise EvalError(
                f"hard_cut={hard_cut} beside {', '.join(asked)}: expected a hard cut or knobs; drop one of the two"
            )
        if seeds is not None and len(seeds) != rows:
            raise EvalError(f"{len(seeds)} seeds for {rows} prompts: expected one a prompt; give as many")
        width = max(map(len, prompts))
        padded = [[self.pad] * (width - len(ids)) + list(ids) for ids in prompts]
        mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
        inputs = {
            "input_ids": torch.tensor(padded, device=self.model.device),
            "attention_mask": torch.tensor(mask, device=self.model.device),
        }
        greedy = seeds is None
        controller = self._controller(asked, width, rows, max_new_tokens, greedy) if asked else None
        start = None
        if self.loaded.installation.forecast is not None:
            start = StartForecast(self.loaded.forecast, self.delimiters, width)
        main: BudgetController | Watched | None = controller
        if hard_cut is not None:
            cut = HardCut(self.delimiters, hard_cut, width)
            main = WatchedCut(cut, None if greedy else self.temperature)
        elif controller is not None and self.steered:
            main = Watched(controller)
        watched = main if isinstance(main, Watched) else None
        other = None if processor is None else processor(width)
        processors = LogitsProcessorList([p for p in (start, other, main) if p is not None])
        if seeds is not None:
            processors.append(SeededSampler(seeds, width, self.temperature, offsets))
        started = time.perf_counter()
        with self._cache(controller, asked, inputs, width, max_new_tokens) as cache, torch.inference_mode():
            output = self.model.generate(
                **inputs,
                **cache,
                logits_processor=processors,
                stopping_criteria=StoppingCriteriaList([StopAfter(stop_ids, width)] if stop_ids else []),
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                max_new_tokens=max_new_tokens,
                pad_token_id=self.pad,
                return_dict_in_generate=True,
            )
            sequences = output.sequences.cpu()
        seconds = (time.perf_counter() - started) / rows
        held = cache_bytes(output.past_key_values)
        return self._completions(
            sequences, width, controller, hard_cut, stop_ids, start, watched, seconds, held and held // rows
        )

    def _controller(
        self, knobs: Mapping[str, Any], width: int, rows: int, max_new_tokens: int, greedy: bool
    ) -> BudgetController:
        config = self._config(knobs, width + max_new_tokens)
        temperature = guided_temperature(self.temperature, not greedy)
        return self.loaded.installation.controller_for(
            config, width, rows, greedy=greedy, temperature=temperature
        )

    def _config(self, knobs: Mapping[str, Any], length: int) -> Any:
        """The model's generation config with these knobs."""
        config = copy.copy(self.model.generation_config)
        for name, value in {**knobs, "max_length": length, "num_beams": 1}.items():
            setattr(config, name, value)
        return config

    @contextmanager
    def _cache(
        self,
        controller: BudgetController | None,
        knobs: Mapping[str, Any],
        inputs: Mapping[str, torch.Tensor],
        width: int,
        max_new_tokens: int,
    ) -> Iterator[dict[str, Any]]:
        """Arguments of ``generate`` for a cache of the KV budget, where there is one; attention is set back after."""
        if controller is None:
            yield {}
            return
        config = self._config(knobs, width + max_new_tokens)
        arguments: dict[str, Any] = {"attention_mask": inputs["attention_mask"]}
        before = self.model.config._attn_implementation
        cache = begin_cache(self.model, controller, config, width, len(inputs["input_ids"]), arguments)
        try:
            yield {} if cache is None else {"past_key_values": cache}
        finally:
            if self.model.config._attn_implementation != before:
                self.model.set_attn_implementation(before)

    def _completions(
        self,
        sequences: torch.Tensor,
        width: int,
        controller: BudgetController | None,
        hard_cut: int | None,
        stop_ids: Sequence[Sequence[int]],
        start: StartForecast | None,
        watched: Watched | None,
        seconds: float,
        kv_bytes: int | None,
    ) -> list[Completion]:
        """What became of the rows of ``sequences`` [B, T]."""
        rows = len(sequences)
        delimiters = self.delimiters if controller is None else controller.delimiters
        reports: Sequence[ThoughtReport | None] = [None] * rows
        extras: list[dict[str, Any]] = [{} for _ in range(rows)]
        if controller is not None:
            reports = report_sequences(controller, sequences, width)
            if controller.early_exit is not None:
                extras = [asdict(cost) for cost in controller.early_exit.account(sequences)]
        ids = [row[: width + end_of(row[width:], delimiters.eos_ids, stop_ids)] for row in sequences.tolist()]
        parts = [split_sequence(row, width, delimiters) for row in ids]
        thoughts = [[column for column in part.columns if column >= width] for part in parts]
        lengths = [len(columns) for columns in thoughts]
        predicted = [None] * rows if start is None else start.predicted(rows)
        cdf = [None] * rows if start is None else start.cdf(lengths)
        noted = [] if watched is None else watched.steps
        written, changed = ([], noted) if hard_cut is None else (noted, [])
        found = []
        for row in range(rows):
            part, report = parts[row], reports[row]
            close = _close(part, width, [step[row] for step in written]) if report is None else report.close
            found.append(
                Completion(
                    new_ids=tuple(ids[row][width:]),
                    thought=tuple(ids[row][column] for column in thoughts[row]),
                    answer=part.answer,
                    close=close,
                    leaked=part.stray_markers > 0,
                    thinking_budget=hard_cut if report is None else report.thinking_budget,
                    predicted_tokens=predicted[row],
                    predicted_cdf=cdf[row] if close == "natural" else None,
                    seconds=seconds,
                    kv_bytes=kv_bytes,
                    steered=_spans([changed[column - width][row] for column in thoughts[row]])
                    if changed
                    else (),
                    extra=extras[row],
                )
            )
        return found


def _close(part: Segments, width: int, written: Sequence[bool]) -> str:
    """How a thought ended to which nothing was done but a hard cut, whose steps are ``written``."""
    if part.close_span is None:
        return "none"
    first, last = (max(column - width, 0) for column in part.close_span)
    return "forced" if any(written[first:last]) else "natural"


def _spans(changed: Sequence[bool]) -> tuple[tuple[int, int], ...]:
    """[start, stop) of the runs of true values."""
    edges = [at for at, (a, b) in enumerate(zip([False, *changed], [*changed, False], strict=True)) if a != b]
    return tuple(zip(edges[::2], edges[1::2], strict=True))
