"""Probes of a thought: asks the model for trial answers at the ends of steps and says which thoughts may end.

It is not free. A probe re-reads the whole prefix, since it shares no key-value cache with the generation, and generates up
to ``probe_tokens`` tokens; and a host sync a step is inherent, because the host decides whether the model is run.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.early_exit import THRESHOLD, EarlyExit
from budgetctl.phrases import phrase_ids
from budgetctl.prefix_hash import hash_prefixes
from budgetctl.spelling import spell
from budgetctl.state import ThinkingState
from budgetctl.thought_steps import thought_steps
from budgetctl.trial_answer import AnswerTexts, left_padded, open_braces, trial_answers

#: Probes whose results are remembered; the oldest are forgotten, and asked again if they are needed.
KEPT = 1 << 18


@dataclass(frozen=True)
class ProbeCost:
    """What probing cost: ``probes`` made, ``probe_tokens`` generated, ``read_tokens`` of prefixes that were read for them
    (close and answer prompt included)."""

    probes: int = 0
    probe_tokens: int = 0
    read_tokens: int = 0

    def __add__(self, other: ProbeCost) -> ProbeCost:
        tokens = self.probe_tokens + other.probe_tokens
        return ProbeCost(self.probes + other.probes, tokens, self.read_tokens + other.read_tokens)


class _Probe(NamedTuple):
    confidence: float
    answer: int
    cost: ProbeCost


class ExitProbe:
    """Asks the model for trial answers and says in which rows the thought may end.

    What it says is a function of the row's prefix. Results of probes are kept under the prefix's hash, which saves asking
    twice and changes nothing. Use one for each ``generate`` call, so that its account is of that call.

    Args:
        model: a text-only causal language model; probes call it directly, so the processors of a generation do not act
            on them.
        tokenizer: its tokenizer.
        delimiters: markers of the thought; ``forced_end_ids`` is written before the answer prompt.
        config: when to probe and when to exit.
        texts: of this tokenizer, if read before.
        pad_ids: leading tokens of a row that are padding; by default the padding tokens of the model's generation config
            and of the tokenizer.

    Raises:
        BudgetError: for an answer prompt, or a text at which to probe, that holds a marker or an end of sequence.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        delimiters: ThinkingDelimiters,
        config: EarlyExit,
        *,
        texts: AnswerTexts | None = None,
        pad_ids: tuple[int, ...] | None = None,
    ) -> None:
        prompt = config.answer_prompt
        prompt_ids = phrase_ids(tokenizer, delimiters, prompt, "early_exit answer_prompt")
        if config.turn is not None:
            phrase_ids(tokenizer, delimiters, config.turn, "early_exit turn")
        self.model = model
        self.delimiters = delimiters
        self.config = config
        self.texts = texts or AnswerTexts.from_tokenizer(
            tokenizer, model.get_output_embeddings().weight.shape[0]
        )
        if pad_ids is None:
            known = (getattr(model.generation_config, "pad_token_id", None), tokenizer.pad_token_id)
            pad_ids = tuple(pad for pad in known if isinstance(pad, int))
        self.pad_ids = pad_ids
        self._tail = (*delimiters.forced_end_ids, *prompt_ids)
        self._opened = open_braces(prompt)
        self._turns = () if config.turn is None else spell(tokenizer, config.turn)
        self._context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._known: OrderedDict[int, _Probe] = OrderedDict()
        #: What all probes so far cost together, each counted once.
        self.spent = ProbeCost()

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, rows: Tensor, state: ThinkingState) -> Tensor:
        """[B] bool: rows whose thought may end now, or whose close was begun by such an exit and is half-written.

        One host sync, and the probes where there are steps to probe.

        Args:
            input_ids: [B, T] int64, left-padded.
            rows: [B] bool, rows that may exit.
            state: of the rows.
        """
        if self.texts.line.device != input_ids.device:
            self.texts = self.texts.to(input_ids.device)
        width = input_ids.shape[1]
        exits = torch.zeros_like(rows)
        if width == 0:
            return exits
        every = self.config.every
        steps, begins = thought_steps(
            input_ids,
            state.thought_start,
            self.delimiters,
            self.texts.line if every == "line" else self.texts.whole,
            None if every == "line" else int(every),
            self._turns,
        )
        backs = range(min(len(self.delimiters.forced_end_ids), width))
        due = [(state.close_progress >= back) & steps[:, width - back] for back in backs]
        row, back = (torch.stack(due, 1) & (rows & state.thinking)[:, None]).nonzero().unbind(1)
        if not len(row):
            return exits
        columns = torch.arange(width + 1, device=input_ids.device)
        seen = torch.where(steps[row] & (columns <= (width - back)[:, None]), columns, -1)
        latest = seen.topk(min(self.config.points, width + 1), dim=1).values
        stops = begins[row].gather(1, latest.clamp(min=0))
        keys = hash_prefixes(input_ids)[row].gather(1, stops)
        enough = (latest >= 0).sum(1) == self.config.points
        row, stops, keys = row[enough], stops[enough], keys[enough]
        keys_of = keys.tolist()
        asked: dict[int, tuple[int, int]] = {}
        for at, each_stop, each_key in zip(row.tolist(), stops.tolist(), keys_of, strict=True):
            asked |= {key: (at, stop) for key, stop in zip(each_key, each_stop, strict=True)}
        found = self._answers(input_ids, asked)
        agreed = [self._agrees([found[key] for key in each]) for each in keys_of]
        exits[row[torch.tensor(agreed, dtype=torch.bool, device=row.device)]] = True
        return exits

    def account(self, sequences: Tensor) -> list[ProbeCost]:
        """What the probes along each of the generated ``sequences`` [B, T] cost; padded as they were generated (host sync).

        Rows that share a prefix share its probes, and each of them is told their cost; ``spent`` counts them once.
        """
        rows = hash_prefixes(sequences).tolist()
        return [sum((self._known[k].cost for k in row if k in self._known), ProbeCost()) for row in rows]

    def _agrees(self, probes: list[_Probe]) -> bool:
        if self.config.method == "confidence":
            threshold = THRESHOLD if self.config.threshold is None else self.config.threshold
            return probes[0].confidence >= threshold
        return probes[0].answer != 0 and len({probe.answer for probe in probes}) == 1

    def _answers(self, input_ids: Tensor, asked: dict[int, tuple[int, int]]) -> dict[int, _Probe]:
        """Results by key, of prefixes named by row and length; those not known are probed."""
        found = {key: self._known[key] for key in asked if key in self._known}
        # Prefixes of like length together, never more than the generation's own batch.
        missing = sorted((stop, row, key) for key, (row, stop) in asked.items() if key not in found)
        for at in range(0, len(missing), input_ids.shape[0]):
            stops, rows, keys = zip(*missing[at : at + input_ids.shape[0]], strict=True)
            probes = self._probe(input_ids, torch.tensor(rows), torch.tensor(stops))
            for key, probe in zip(keys, probes, strict=True):
                found[key] = self._known[key] = probe
                self.spent += probe.cost
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        return found

    def _probe(self, input_ids: Tensor, rows: Tensor, stops: Tensor) -> list[_Probe]:
        """Results of the first ``stops`` [N] columns of ``rows`` [N]; a prefix that the model's context has no room for
        is not probed, and its thought does not exit."""
        device = input_ids.device
        chosen, stops = input_ids[rows.to(device)], stops.to(device)
        padding = torch.isin(chosen, torch.tensor(self.pad_ids, dtype=torch.int64, device=device))
        begin = padding.cumprod(1).sum(1)
        read = (stops - begin + len(self._tail)).tolist()
        fits = [self._context is None or n + self.config.probe_tokens <= self._context for n in read]
        probes = [_Probe(0.0, 0, ProbeCost())] * len(read)
        if not any(fits):
            return probes
        where = torch.tensor(fits, device=device)
        answers = trial_answers(
            self.model,
            *left_padded(chosen[where], begin[where], stops[where], self._tail),
            self.texts,
            max_tokens=self.config.probe_tokens,
            eos_ids=self.delimiters.eos_ids,
            opened=self._opened,
        )
        results = zip(answers.confidence.tolist(), answers.key.tolist(), answers.tokens.tolist(), strict=True)
        for at in [at for at, fit in enumerate(fits) if fit]:
            confidence, key, tokens = next(results)
            probes[at] = _Probe(confidence, key, ProbeCost(1, tokens, read[at]))
        return probes
