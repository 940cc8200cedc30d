"""One chat completion: from the request's fields to the reply, whole or in chunks."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncGenerator
from typing import Any

from budgetctl.errors import BudgetError, PlanError
from budgetctl.integrations.serve.engine import Engine, Sampling
from budgetctl.integrations.serve.metrics import ServerMetrics
from budgetctl.integrations.serve.schema import FIELDS, ChatRequest, RequestError
from budgetctl.integrations.serve.splitter import ThoughtSplitter, ThoughtText
from budgetctl.integrations.serve.stop import StopCutter

#: New tokens of a request that sets no limit, where the model's generation config sets none either.
NEW_TOKENS = 4096


class Exchange:
    """What one request asks of the engine, checked; then :meth:`answer` or :meth:`chunks`.

    Raises:
        RequestError: for another model, messages that the chat template refuses, or a prompt or length beyond the
            context. Knobs that make no sense are refused at the first step of the generation.
    """

    def __init__(self, engine: Engine, asked: ChatRequest, metrics: ServerMetrics | None = None) -> None:
        if asked.model is not None and asked.model != engine.name:
            raise RequestError(
                f"model={asked.model!r} is not served: expected {engine.name!r}", "model", status=404
            )
        self.engine = engine
        self.metrics = metrics
        self.asked = asked
        self.knobs = asked.knobs()
        self.prompt_ids = _encode(engine, asked)
        room = engine.context - len(self.prompt_ids)
        if room < 1:
            raise RequestError(
                f"messages have {len(self.prompt_ids)} tokens: expected fewer than the context of {engine.context}",
                "messages",
            )
        if asked.new_tokens is not None and asked.new_tokens > room:
            raise RequestError(
                f"{asked.new_tokens_field}={asked.new_tokens} and a prompt of {len(self.prompt_ids)} tokens exceed "
                f"the context of {engine.context}: expected at most {room}",
                asked.new_tokens_field,
            )
        self.new_tokens = asked.new_tokens or min(engine.default_new_tokens or NEW_TOKENS, room)
        default = engine.default_sampling
        self.sampling = Sampling(
            default.temperature if asked.temperature is None else float(asked.temperature),
            default.top_p if asked.top_p is None else float(asked.top_p),
            default.top_k if asked.top_k is None else asked.top_k,
        )
        self.created = int(time.time())
        self._name = ""
        self._tokens: list[int] = []
        self._stop = StopCutter(asked.stop or ())

    async def answer(self) -> dict[str, Any]:
        """The whole reply, a ``chat.completion``."""
        parts = {True: "", False: ""}
        async for pieces in self._texts(streaming=False):
            for thinking, text in pieces:
                parts[thinking] += text
        message = {"role": "assistant", "content": parts[False], "reasoning_content": parts[True]}
        usage, account = await self._account()
        return {
            **self._head("chat.completion"),
            "choices": [{"index": 0, "message": message, "finish_reason": self._reason(), "logprobs": None}],
            "usage": usage,
            "budgetctl": account,
        }

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """The reply in ``chat.completion.chunk`` objects, the first when the generation has begun."""
        begun = False
        async for pieces in self._texts(streaming=True):
            if not begun:
                yield self._chunk({"role": "assistant", "content": ""})
                begun = True
            for thinking, text in pieces:
                yield self._chunk({"reasoning_content" if thinking else "content": text})
        usage, account = await self._account()
        yield {**self._chunk({}, self._reason()), "budgetctl": account}
        options = self.asked.stream_options
        if options is not None and options.include_usage:
            yield {**self._head("chat.completion.chunk"), "choices": [], "usage": usage}

    async def _texts(self, *, streaming: bool) -> AsyncGenerator[list[tuple[bool, str]], None]:
        splitter = ThoughtSplitter(self.engine.delimiters, self.prompt_ids)
        text, stop = ThoughtText(self.engine.backend), self._stop
        outputs = self.engine.generate(
            self.prompt_ids,
            self.new_tokens,
            self.sampling,
            self.knobs,
            streaming=streaming or bool(self.asked.stop),
        )
        try:
            async for self._name, tokens, over in outputs:
                shown = []
                for count in range(len(self._tokens), len(tokens)):
                    shown += stop.read(text.read(splitter.push(tokens[count])))
                    if stop.found:
                        break
                self._tokens = tokens[: count + 1] if stop.found else tokens
                if over:
                    shown += stop.read(text.read(splitter.finish()), over=True)
                yield shown
                if stop.found:  # what is still being generated is cancelled
                    break
        except (BudgetError, PlanError) as error:
            message = str(error)
            field = "plan" if isinstance(error, PlanError) else self.asked.field_of(message)
            named = message if field is None or field in message else f"{field}: {message}"
            raise RequestError(named, field) from None
        finally:
            await outputs.aclose()

    async def _account(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """``usage``, and what became of the thought."""
        report = await asyncio.to_thread(self.engine.report, self._name, self.prompt_ids, self._tokens)
        prompt, written = len(self.prompt_ids), len(self._tokens)
        if self.metrics is not None:
            self.metrics.note(report, prompt)
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
            "completion_tokens_details": {"reasoning_tokens": report.thinking_tokens},
        }
        return usage, report.as_dict()

    def _reason(self) -> str:
        if self._stop.found:
            return "stop"
        return "stop" if self._tokens and self._tokens[-1] in self.engine.delimiters.eos_ids else "length"

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self._name}",
            "object": kind,
            "created": self.created,
            "model": self.engine.name,
        }

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}


def _encode(engine: Engine, asked: ChatRequest) -> list[int]:
    messages = [message.for_template() for message in asked.messages]
    variables = asked.chat_template_kwargs or {}
    render = engine.tokenizer.apply_chat_template
    own = [name for name in variables if name in inspect.signature(render).parameters]
    if own:
        raise RequestError(
            f"chat_template_kwargs.{own[0]} is not for a client to set: expected variables of the chat template; drop it",
            "chat_template_kwargs",
        )
    # Some templates write a budget or an effort into the prompt; elsewhere it would be lost without a word.
    template = str(getattr(engine.tokenizer, "chat_template", ""))
    lost = [name for name in variables if name in FIELDS and name not in template]
    if lost:
        raise RequestError(
            f"chat_template_kwargs.{lost[0]} is no variable of this chat template: expected {lost[0]} beside messages; "
            "move it there",
            "chat_template_kwargs",
        )
    try:
        encoded = render(messages, add_generation_prompt=True, return_dict=True, **variables)
    except Exception as error:  # a template can raise anything
        field = "messages" if asked.chat_template_kwargs is None else "chat_template_kwargs"
        reason = " ".join(str(error).split())
        raise RequestError(
            f"{field} cannot be put into the chat template ({reason}): expected what this model's template takes",
            field,
        ) from None
    if not encoded["input_ids"]:
        raise RequestError("messages have no tokens: expected at least one; write something", "messages")
    return list(encoded["input_ids"])
