"""A finished generation told again token by token: what was left, what was forecast, and how the controller moved it.

The controller is a function of (prefix, logits), so a finished sequence is enough: the model reads it once, and the
controller is asked again at every prefix. Logits of one long forward pass differ from those of cached decoding by
rounding, so a value may differ in its last digits from that of the generation; the tokens are those generated.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from budgetctl.budget import NO_CAP, tokens_left
from budgetctl.closing import closing_window
from budgetctl.controller import BudgetController
from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.errors import BudgetError
from budgetctl.integrations.transformers import Installation
from budgetctl.ledger import CloseLog, PredictionTable
from budgetctl.limits import repeat_to
from budgetctl.predictors.calibrate import level_for
from budgetctl.segments import split_sequence
from budgetctl.state import thinking_state
from budgetctl.step_trace import StepTrace
from budgetctl.telemetry import limited_rows

#: Coverages of the three quantiles of a trace.
COVERAGES = (0.1, 0.5, 0.9)


@torch.no_grad()
def replay(
    installation: Installation,
    sequence: torch.Tensor,
    prompt_length: int,
    *,
    controller: BudgetController | None = None,
    request: int = 0,
    padding: int | None = None,
    chunk_size: int = 1024,
) -> list[StepTrace]:
    """Trace every generated token of one finished sequence, up to its end of sequence.

    The model reads the sequence once. Other logits processors of the call are not applied: their effect is not told.

    Args:
        installation: of the model that generated it.
        sequence: [T] int64, prompt (left-padded or not) and generated tokens.
        prompt_length: padded width of the prompt in tokens.
        controller: of the generation; that of the latest ``generate`` call by default. It is left as it is.
        request: which of the prompts of the call this was.
        padding: padded columns on the left; by default the leading padding tokens of the tokenizer.
        chunk_size: positions whose logits [chunk_size, V] are held at a time; where the sequence is longer, the model
            reads it in pieces through its key-value cache.

    Raises:
        BudgetError: when nothing has been generated yet, or nothing follows the prompt, or there is no such request.
    """
    controller = controller if controller is not None else installation.controller
    if controller is None:
        raise BudgetError("nothing to replay: expected a call of generate before; generate, then replay")
    requests = len(controller.limits.minimum)
    if not 0 <= request < requests:
        raise BudgetError(
            f"request={request} of a call with {requests} requests: expected 0 to {requests - 1}; correct it"
        )
    ids = torch.as_tensor(sequence).reshape(-1).to(installation.model.device)
    if padding is None:
        padding = _leading_pads(installation, ids[:prompt_length].tolist())
    ids, prompt_length = _until_end(ids[padding:], prompt_length - padding, controller.delimiters)
    if not 0 < prompt_length < len(ids):
        raise BudgetError(
            f"a sequence of {len(ids)} tokens and a prompt of {prompt_length}: expected a prompt and tokens after it; "
            "give the sequence that generate returned"
        )
    again = _as_new(controller, prompt_length)
    steps = _Steps(installation, again, ids, prompt_length, request, requests)
    for start, logits in _logits(installation.model, ids, prompt_length, chunk_size):
        steps.ask(start, logits)
    return steps.traces(installation.tokenizer)


class _Steps:
    """Asks the controller at every prefix and keeps the answers on the device until all are there.

    Every prefix stands in as many rows as the call had requests, so that the row of each keeps its own limits.
    """

    def __init__(
        self,
        installation: Installation,
        controller: BudgetController,
        ids: torch.Tensor,
        prompt_length: int,
        request: int,
        requests: int,
    ) -> None:
        self.controller = controller
        self.ids = ids
        self.prompt_length = prompt_length
        self.request = request
        self.requests = requests
        self.calibration = installation.artifact.calibration if installation.artifact is not None else {}
        self._values: list[torch.Tensor] = []
        self._facts: list[torch.Tensor] = []
        self._quantiles: list[torch.Tensor] = []

    def ask(self, start: int, logits: torch.Tensor) -> None:
        """Go on with the logits [n, V] that follow the prefixes of ``start``, ``start`` + 1, ... tokens."""
        controller, forecast = self.controller, self.controller.forecast
        if forecast is not None:
            concentration, rate = forecast.outlook(logits).parameters
            levels = torch.tensor([level_for(self.calibration, c) for c in COVERAGES]).to(rate)
            length = forecast.predictor.quantile(concentration[:, None], rate[:, None], levels)
            self._quantiles.append(length - 1)
        for offset, scores in enumerate(logits):
            width = start + offset
            prefix = self.ids[None, :width].expand(self.requests, -1)
            guided = controller(prefix, scores.expand(self.requests, -1))[self.request]
            temperature = 1.0 if controller.greedy else controller.temperature
            if not isinstance(temperature, int | float):
                temperature = torch.as_tensor(temperature).reshape(-1)[self.request].item()
            before, after = ((x.double() / temperature).log_softmax(0) for x in (scores, guided))
            # A token that the guided distribution rules out adds nothing.
            kl = torch.where(after > -torch.inf, after.exp() * (after - before), 0.0).sum().clamp(min=0)
            token = self.ids[width]
            loser = (before.exp() - after.exp()).argmax()
            self._values.append(
                torch.stack([before[token], after[token], kl, before[loser].exp(), after[loser].exp()])
            )
            only = ((guided > -torch.inf).sum() == 1) & ((scores > -torch.inf).sum() > 1)
            state = thinking_state(prefix[:1], controller.delimiters, prompt_length=self.prompt_length)
            at_end = (
                controller.boundaries.at_end(prefix[:1])
                if controller.boundaries is not None
                else torch.zeros_like(only)
            )
            facts = (
                loser,
                state.thinking,
                state.used,
                state.generated,
                only,
                at_end.reshape(1) & state.thinking & ~state.at_start,
            )
            self._facts.append(torch.cat([fact.reshape(1).to(torch.int64) for fact in facts]))

    def traces(self, tokenizer: PreTrainedTokenizerBase) -> list[StepTrace]:
        """All steps (host sync)."""
        controller, ids, requests = self.controller, self.ids.cpu(), self.requests
        budgets, _, _ = controller.account(ids.expand(requests, -1), self.prompt_length)
        cap = torch.tensor([budgets[self.request]])
        room = repeat_to(controller.limits.room, requests, cap.device)[self.request]
        facts = torch.stack(self._facts).cpu()
        used, generated = facts[:, 2], facts[:, 3]
        left = tokens_left(used, cap, generated, room)
        window = int(closing_window(cap, room)) if controller.boundaries is not None else -1
        limited = bool(limited_rows(controller, requests)[self.request])
        limited = limited and min(int(cap), int(room)) < NO_CAP
        quantiles = torch.cat(self._quantiles).tolist() if self._quantiles else [None] * len(facts)
        texts = _texts(tokenizer, ids[self.prompt_length :].tolist())
        close = split_sequence(ids.tolist(), self.prompt_length, controller.delimiters).close_span or (0, 0)
        traces = []
        for position, (before, after, kl, lost, kept) in enumerate(torch.stack(self._values).tolist()):
            loser, thinking, _, _, forced, boundary = facts[position].tolist()
            column = self.prompt_length + position
            low, median, high = quantiles[position] or (0.0, 0.0, 0.0)
            tokens = int(left[position]) if limited else None
            traces.append(
                StepTrace(
                    position=position,
                    token_id=int(ids[column]),
                    token=texts[position],
                    thinking=bool(thinking),
                    closes=close[0] <= column < close[1],
                    used=int(used[position]),
                    left=tokens,
                    budget=int(cap) if int(cap) < NO_CAP else None,
                    remaining=(low, median, high) if thinking and quantiles[position] else None,
                    probability=math.exp(before),
                    guided_probability=math.exp(after),
                    push=after - before if before > -math.inf or after > -math.inf else 0.0,
                    kl=kl,
                    loser=tokenizer.decode([loser]) if lost > kept else None,
                    loser_probability=lost if lost > kept else 0.0,
                    loser_guided=kept if lost > kept else 0.0,
                    boundary=bool(boundary),
                    window=bool(thinking) and tokens is not None and tokens <= window,
                    forced=bool(forced),
                )
            )
        return traces


def _as_new(controller: BudgetController, prompt_length: int) -> BudgetController:
    """The controller with the same constants and nothing remembered, for a prompt of that length."""
    again = copy.copy(controller)
    again.prompt_length = prompt_length
    again.predictions, again.close_log = PredictionTable(), CloseLog()
    again.raw = None
    return again


def _leading_pads(installation: Installation, prompt: list[int]) -> int:
    pads = {installation.model.generation_config.pad_token_id, installation.tokenizer.pad_token_id}
    return next((at for at, token in enumerate(prompt) if token not in pads), len(prompt))


def _until_end(
    ids: torch.Tensor, prompt_length: int, delimiters: ThinkingDelimiters
) -> tuple[torch.Tensor, int]:
    """The ids [T] without what follows the end of sequence, and the length of the prompt."""
    generated = ids[max(prompt_length, 0) :].tolist()
    ends = (at + 1 for at, token in enumerate(generated) if token in delimiters.eos_ids)
    return ids[: prompt_length + next(ends, len(generated))], prompt_length


def _logits(
    model: PreTrainedModel, ids: torch.Tensor, prompt_length: int, chunk_size: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Pairs of a prefix length n and float32 logits [m, V] that follow the prefixes of n, n + 1, ... tokens."""
    cache = None
    # The last token is followed by nothing.
    for start in range(0, len(ids) - 1, chunk_size):
        stop = min(start + chunk_size, len(ids) - 1)
        several = start > 0 or stop < len(ids) - 1
        outputs = model(input_ids=ids[None, start:stop], past_key_values=cache, use_cache=several)
        cache = outputs.past_key_values if several else None
        first = max(start, prompt_length - 1)
        if first < stop:
            # As generate does it: processors get float32.
            yield first + 1, outputs.logits[0, first - start :].float()


def _texts(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """Text of each token; a character of several tokens is the text of its last."""
    texts = []
    begin, middle = 0, 0  # tokens from ``middle`` on are not told yet, those before it may merge with them
    for stop in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[begin:stop], clean_up_tokenization_spaces=False)
        if text.endswith("\ufffd") and stop < len(ids):
            texts.append("")
            continue
        told = tokenizer.decode(ids[begin:middle], clean_up_tokenization_spaces=False)
        texts.append(text[len(told) :])
        begin, middle = middle, stop
    return texts
