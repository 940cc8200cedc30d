"""``install``: gives a transformers model the effort knob of its generation config."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
)

from budgetctl.checks import shown
from budgetctl.closing import Boundaries, with_transition
from budgetctl.controller import BudgetController
from budgetctl.delimiters import ThinkingDelimiters, find_delimiters
from budgetctl.early_exit import EarlyExit
from budgetctl.errors import BudgetctlError, BudgetError, PredictorError
from budgetctl.exit_probe import ExitProbe
from budgetctl.extension import Extension
from budgetctl.forecast import NATURAL_COVERAGE, LengthForecast
from budgetctl.guidance import guided_temperature
from budgetctl.integrations import batching_support as batching
from budgetctl.integrations.callback import OnReport, ReportCallback
from budgetctl.integrations.kv_hooks import KV_KNOBS, begin_cache, keep_attention
from budgetctl.integrations.wrapping import unwrap
from budgetctl.phrases import phrase_ids
from budgetctl.plan.knob import follow_plans, write_notes
from budgetctl.predictors.artifact import PredictorArtifact, check_model, load_predictor
from budgetctl.predictors.calibrate import level_for
from budgetctl.predictors.hidden_state import LogitsHiddenState, recovery_error
from budgetctl.raw_logits import RawLogits
from budgetctl.sampling import SeededSampler
from budgetctl.structured import KeepAlive
from budgetctl.telemetry import ThoughtReport, report_sequences
from budgetctl.trial_answer import AnswerTexts

#: What ``install`` adds to a generation config, each with its default. ``None`` and ``auto`` change nothing.
KNOBS: dict[str, object] = {
    "effort": "auto",
    "thinking_budget": None,
    "min_thinking_tokens": None,
    "thinking_target": None,
    "target_tolerance": None,
    "max_extensions": None,
    "extension_phrase": None,
    "transition_phrase": None,
    "answer_reserve": None,
    "guidance_strength": None,
    "guided_steps": None,
    "early_exit": None,
    "plan": None,
    "budget_notes": None,
    "kv_budget": None,
    "kv_policy": None,
    "kv_max_loss": None,
}
#: Written where a thought is extended, unless ``extension_phrase`` says otherwise (s1, arXiv 2501.19393).
EXTENSION_PHRASE = "Wait"
#: So many plans are kept in tokens.
MANY_PLANS = 1024
#: Largest relative error of the hidden state recovered from logits that ``install`` accepts.
MAX_RECOVERY_ERROR = 0.05

_PROBE = "Think it over, step by step: what is 12 + 30 - 5? Then say whether a ball is a cube."


@dataclass
class Installation:
    """What :func:`install` found and set up. ``controller`` is that of the latest ``generate`` call, and so is ``cache``,
    its ``BudgetCache`` where it had a KV budget; ``model`` is the one that generates, for a PEFT model its base."""

    model: GenerationMixin
    tokenizer: PreTrainedTokenizerBase
    delimiters: ThinkingDelimiters
    boundaries: Boundaries
    forecast: LengthForecast | None
    artifact: PredictorArtifact | None
    recovery_error: float | None
    controller: BudgetController | None = None
    cache: Any = None
    #: The ``BatchedBudgets`` of the latest ``generate_batch`` call or ``ContinuousBatchingManager``.
    batching: Any = None
    #: Whether steps run by ``torch.compile``.
    compiled: bool = False
    _prompt_length: int = 0
    _original: Callable[..., LogitsProcessorList] | None = field(default=None, repr=False)
    _callback: ReportCallback | None = field(default=None, repr=False)
    _texts: AnswerTexts | None = field(default=None, repr=False)
    #: Plans in tokens; continuous batching asks for them whenever a request comes or goes.
    _spelled: dict[Any, Any] = field(default_factory=dict, repr=False)

    def reports(self, sequences: torch.Tensor) -> list[ThoughtReport]:
        """Accounts of the sequences [B, T] that the latest ``generate`` call returned.

        Raises:
            BudgetError: when nothing has been generated yet.
        """
        if self.controller is None:
            raise BudgetError(
                "no report yet: expected a call of generate before; generate, then ask for reports"
            )
        return report_sequences(self.controller, sequences.to("cpu"), self._prompt_length)

    def uninstall(self) -> None:
        """Give the model back as it was; the knobs' values stay in its generation config."""
        self.model.__dict__.pop("_get_logits_processor", None)
        batching.remove_from(self.model)
        unwrap(self.model)

    def controller_for(
        self, config: GenerationConfig, prompt_length: int, prompts: int, **rows: object
    ) -> BudgetController:
        """The controller of one ``generate`` call; validates the knobs of ``config`` before the model runs. ``rows`` are
        settings of the controller that replace those of ``config``."""
        sampled = bool(config.do_sample)
        delimiters = _ending_with(self.delimiters, config.eos_token_id)
        transition = getattr(config, "transition_phrase", None)
        if transition is not None:
            delimiters = with_transition(delimiters, self.tokenizer, transition)
        settings: dict[str, Any] = {name: getattr(config, name, None) for name in batching.REQUEST_KNOBS}
        length = config.max_length
        settings["max_new_tokens"] = None if length is None else max(length - prompt_length, 0)
        settings["temperature"] = guided_temperature(config.temperature or None, sampled)
        settings["greedy"] = not sampled
        plan, notes = (rows.pop(name, getattr(config, name, None)) for name in batching.PLAN_KNOBS)
        controller = BudgetController(
            delimiters,
            forecast=self.forecast,
            boundaries=self.boundaries,
            prompt_length=prompt_length,
            extension=self._extension(config, delimiters),
            early_exit=self._early_exit(config, delimiters),
            guidance_strength=getattr(config, "guidance_strength", None),
            guided_steps=getattr(config, "guided_steps", None) or "every",
            compiled=self.compiled,
            **(settings | rows),
        )
        controller.budgets.check_rows(prompts)
        if len(self._spelled) > MANY_PLANS:
            self._spelled.clear()
        follow_plans(controller, plan, self.tokenizer, prompts, self._spelled)
        write_notes(controller, notes, self.tokenizer, prompts)
        return controller

    def _early_exit(self, config: GenerationConfig, delimiters: ThinkingDelimiters) -> ExitProbe | None:
        rule = EarlyExit.of(getattr(config, "early_exit", None))
        if rule is None:
            return None
        probe = ExitProbe(self.model, self.tokenizer, delimiters, rule, texts=self._texts)
        self._texts = probe.texts  # the vocabulary is read once
        return probe

    def _extension(self, config: GenerationConfig, delimiters: ThinkingDelimiters) -> Extension | None:
        limit, phrase = (getattr(config, name, None) for name in ("max_extensions", "extension_phrase"))
        if limit is None:
            if phrase is not None:
                raise BudgetError(
                    f"extension_phrase={shown(phrase)} is never written: expected max_extensions too; give it or drop the phrase"
                )
            return None
        text = EXTENSION_PHRASE if phrase is None else phrase
        return Extension(phrase_ids(self.tokenizer, delimiters, text, "extension_phrase"), limit)


def install(
    model: GenerationMixin,
    tokenizer: PreTrainedTokenizerBase,
    predictor: str | Path | PredictorArtifact | None = None,
    *,
    delimiters: ThinkingDelimiters | None = None,
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
    on_report: OnReport | None = None,
) -> Installation:
    """Make ``model.generate(effort=..., thinking_budget=...)`` work, and persist in ``generation_config.json``.

    Args:
        model: a decoder-only causal language model, or a PEFT model of one.
        tokenizer: its tokenizer; the thought's markers are found from it and its chat template.
        predictor: directory or hub id of a fitted length predictor for this model, or a loaded one. Without it
            ``thinking_budget`` works as a cap, closed at a line end near the budget; relative efforts are refused.
        delimiters: markers of the thought, where they cannot be found.
        dtype: in which the forecast is computed.
        compiled: run the controller's step by ``torch.compile``: all of it on a GPU, where it is bound by its number of
            launches, guidance alone on the CPU. The first step with other knobs, or with a second batch size, takes
            seconds to a minute. A plan, its notes and ``early_exit`` run as they are.
        on_report: called with the list of reports, one a returned sequence, when a ``generate`` call has finished. An
            exception in it is logged as a warning, and the generation is returned all the same.

    Returns:
        The :class:`Installation`, with the delimiters found, the measured recovery error, and ``reports``.

    Raises:
        DelimiterError: when the tokenizer has no markers of a thought.
        PredictorError: for a predictor that is corrupt or of another model, or when the hidden state cannot be
            recovered from this model's logits.
        BudgetctlError: for an encoder-decoder model.
    """
    if hasattr(model, "get_base_model"):  # a PEFT model generates with the model inside it
        model = model.get_base_model()
    if getattr(model.config, "is_encoder_decoder", False):
        raise BudgetctlError(
            f"{type(model).__name__} is an encoder-decoder model: expected a decoder-only causal language model"
        )
    if delimiters is None:
        delimiters = find_delimiters(tokenizer, eos_token_id=model.generation_config.eos_token_id)
    head = model.get_output_embeddings()
    boundaries = Boundaries.from_tokenizer(tokenizer, head.weight.shape[0])
    installation = Installation(model, tokenizer, delimiters, boundaries, None, None, None, compiled=compiled)
    if predictor is not None:
        artifact = predictor if isinstance(predictor, PredictorArtifact) else load_predictor(predictor)
        check_model(artifact, head.weight, delimiters)
        source = _logits_source(model, dtype)
        installation.artifact = artifact
        installation.recovery_error = _probe_error(model, tokenizer, source)
        installation.forecast = LengthForecast(
            artifact.predictor,
            source,
            head.weight,
            artifact.guidance_strength,
            dtype,
            level_for(artifact.calibration, NATURAL_COVERAGE),
            compiled,
        )
    for name, default in KNOBS.items():
        if not hasattr(model.generation_config, name):
            setattr(model.generation_config, name, default)
    installation._original = type(model)._get_logits_processor
    model._get_logits_processor = MethodType(_with_controller(installation), model)
    unwrap(model)
    keep_attention(model)
    batching.add_to(model, installation)
    if on_report is not None:
        installation._callback = ReportCallback(on_report)
        installation._callback.wrap(model)
    return installation


def _ending_with(
    delimiters: ThinkingDelimiters, eos_token_id: int | list[int] | torch.Tensor | None
) -> ThinkingDelimiters:
    """The markers with the end-of-sequence ids of one ``generate`` call added."""
    if eos_token_id is None:
        return delimiters
    ids = (i for i in torch.as_tensor(eos_token_id).reshape(-1).tolist() if i >= 0)
    return replace(delimiters, eos_ids=tuple(dict.fromkeys((*delimiters.eos_ids, *ids))))


def _with_controller(installation: Installation) -> Callable[..., LogitsProcessorList]:
    def _get_logits_processor(
        self: GenerationMixin,
        generation_config: GenerationConfig,
        input_ids_seq_length: int | None = None,
        encoder_input_ids: torch.Tensor | None = None,
        prefix_allowed_tokens_fn: Callable[[int, torch.Tensor], list[int]] | None = None,
        logits_processor: list[LogitsProcessor] | None = None,
        **others: Any,
    ) -> LogitsProcessorList:
        processors = list(logits_processor or [])
        controller = None
        if input_ids_seq_length is None:
            if not batching.has_batching():
                _refuse(generation_config, batching.NO_BATCHING, "upgrade transformers, or use generate")
            else:
                why = "continuous batching leaves no forward pass for probes"
                _refuse(generation_config, why, "use generate", ("early_exit",))
                why = "continuous batching has a paged cache of its own"
                _refuse(generation_config, why, "use generate", KV_KNOBS)
                installation.batching = batching.batched_budgets(installation, generation_config)
                processors.insert(0, installation.batching)
        else:
            if input_ids_seq_length == 0:  # the opened thought stands in the embeddings, unseen
                _refuse(
                    generation_config,
                    "inputs_embeds do not show the thought that the prompt has opened",
                    "give input_ids too",
                )
            prompts = 1 if encoder_input_ids is None else encoder_input_ids.shape[0]
            # With this sampler the likeliest token of the noisy logits is a sample.
            sampler = next((one for one in processors if isinstance(one, SeededSampler)), None)
            rows = {} if sampler is None else {"greedy": False, "temperature": sampler.temperature}
            controller = installation.controller_for(generation_config, input_ids_seq_length, prompts, **rows)
            copies = max(generation_config.num_beams, generation_config.num_return_sequences)
            cache = begin_cache(
                self,
                controller,
                generation_config,
                input_ids_seq_length,
                prompts * copies,
                others["model_kwargs"],
            )
            if not generation_config.is_assistant:  # a draft of the model itself is no call of its own
                installation.controller, installation.cache = controller, cache
                installation._prompt_length = input_ids_seq_length
                if installation._callback is not None:
                    installation._callback.note(controller, input_ids_seq_length)
            processors = [controller, *processors, KeepAlive(controller)] if processors else [controller]
        assert installation._original is not None
        built = installation._original(
            self,
            generation_config=generation_config,
            input_ids_seq_length=input_ids_seq_length,
            encoder_input_ids=encoder_input_ids,
            prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
            logits_processor=LogitsProcessorList(processors),
            **others,
        )
        if controller is None and installation.batching is not None:
            built.insert(0, installation.batching.inputs)
        elif controller is not None and controller.forecast is not None:
            controller.first = built[0] is controller
            if not controller.first:
                controller.raw = RawLogits()
                built.insert(0, controller.raw)
        return built

    return _get_logits_processor


def _refuse(config: GenerationConfig, why: str, advice: str, knobs: Iterable[str] = KNOBS) -> None:
    """Raise if any of the knobs is set."""
    asked = [name for name in knobs if getattr(config, name, None) not in (KNOBS[name], None)]
    if asked:
        raise BudgetError(
            f"{asked[0]}={getattr(config, asked[0])!r} is set and {why}: expected {asked[0]} unset; {advice}"
        )


def _logits_source(model: GenerationMixin, dtype: torch.dtype) -> LogitsHiddenState:
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    # Two conventions: Cohere multiplies by logit_scale, Granite divides by logits_scaling.
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    return LogitsHiddenState(
        head.weight,
        bias=getattr(head, "bias", None),
        scale=scale,
        softcap=getattr(config, "final_logit_softcapping", None),
        dtype=dtype,
    )


def _probe_error(
    model: GenerationMixin, tokenizer: PreTrainedTokenizerBase, source: LogitsHiddenState
) -> float:
    """Relative error of the hidden state recovered from logits, against the one read by a hook."""
    probe = tokenizer(_PROBE, return_tensors="pt", add_special_tokens=False).input_ids.to(model.device)
    error = recovery_error(model, source, probe)
    if not math.isfinite(error) or error > MAX_RECOVERY_ERROR:
        raise PredictorError(
            f"the hidden state recovered from this model's logits is off by {error:.1%}: expected at most "
            f"{MAX_RECOVERY_ERROR:.0%}; its logits are not a linear map of the last hidden state, so the length "
            "predictor cannot be used: install without predictor"
        )
    return error
