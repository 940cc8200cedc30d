"""The fields of a chat-completions request, and how a bad one is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from budgetctl.checks import check_temperature, shown
from budgetctl.errors import BudgetctlError

#: Fields that set a knob, in the order in which a message about them is looked for; the first name is budgetctl's.
KNOB_FIELDS: dict[str, tuple[str, ...]] = {
    "min_thinking_tokens": ("min_thinking_tokens",),
    "thinking_target": ("thinking_target",),
    "target_tolerance": ("target_tolerance",),
    "answer_reserve": ("answer_reserve",),
    "thinking_budget": ("thinking_budget", "thinking_token_budget"),
    "effort": ("effort", "reasoning_effort"),
    "plan": ("plan",),
    "budget_notes": ("budget_notes",),
}
#: All their names.
FIELDS = frozenset(name for names in KNOB_FIELDS.values() for name in names)
#: Stop sequences of one request, as in OpenAI's interface.
MOST_STOPS = 4


class RequestError(Exception):
    """A request that is refused, in the form of OpenAI's errors; ``param`` names the field."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": None}}


class TextPart(BaseModel):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message; fields beside these go to the chat template as they are."""

    model_config = ConfigDict(extra="allow")
    role: str
    content: str | list[TextPart] | None = None

    def for_template(self) -> dict[str, Any]:
        content = self.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        return {**self.model_dump(exclude_none=True), "content": content or ""}


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class ChatRequest(BaseModel):
    """What a client may ask. Knobs are checked by budgetctl's own rules; neutral values of fields that are not supported
    are accepted, since some clients always send them."""

    model_config = ConfigDict(extra="forbid")
    messages: Annotated[list[Message], Field(min_length=1)]
    model: str | None = None
    max_tokens: Annotated[int | None, Field(strict=True, ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(strict=True, ge=1)] = None
    temperature: Annotated[float | None, Field(strict=True, ge=0, le=10)] = None
    top_p: Annotated[float | None, Field(strict=True, gt=0, le=1)] = None
    top_k: Annotated[int | None, Field(strict=True, ge=-1)] = None
    stop: list[str] | None = None
    stream: Annotated[bool | None, Field(strict=True)] = None
    stream_options: StreamOptions | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    effort: Any = None
    reasoning_effort: Any = None
    thinking_budget: Any = None
    thinking_token_budget: Any = None
    min_thinking_tokens: Any = None
    thinking_target: Any = None
    target_tolerance: Any = None
    answer_reserve: Any = None
    plan: Any = None
    budget_notes: Any = None
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    frequency_penalty: Annotated[float | None, Field(ge=0, le=0)] = None
    presence_penalty: Annotated[float | None, Field(ge=0, le=0)] = None
    user: str | None = None
    metadata: dict[str, Any] | None = None

    @field_validator("temperature")
    @classmethod
    def in_range(cls, value: float | None) -> float | None:
        """0 takes the most likely token."""
        if value:
            check_temperature(value)
        return value

    @field_validator("stop", mode="before")
    @classmethod
    def check_stop(cls, value: object) -> object:
        """A single text is a list of one."""
        texts = [value] if isinstance(value, str) else value
        if texts is not None and not (
            isinstance(texts, list)
            and len(texts) <= MOST_STOPS
            and all(isinstance(text, str) and text for text in texts)
        ):
            raise ValueError(f"expected a text, or a list of up to {MOST_STOPS}, none of them empty")
        return texts

    @property
    def new_tokens(self) -> int | None:
        """Tokens of thought and answer together, None when the client leaves them to the server."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def new_tokens_field(self) -> str:
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    def knobs(self) -> dict[str, Any]:
        """The knobs that are given, under budgetctl's names.

        Raises:
            RequestError: when two names of one knob have different values.
        """
        found: dict[str, Any] = {}
        for knob, names in KNOB_FIELDS.items():
            given = {name: value for name in names if (value := getattr(self, name)) is not None}
            if list(given.items()) == [("thinking_token_budget", -1)]:
                continue  # vLLM's word for no limit
            values = list(given.values())
            if len(values) == 2 and values[0] != values[1]:
                first, second = given
                raise RequestError(
                    f"{first}={values[0]!r} contradicts {second}={values[1]!r}: expected one of them; drop the other",
                    second,
                )
            if values:
                found[knob] = values[0]
        return found

    def field_of(self, message: str) -> str | None:
        """The field that a refusal of budgetctl speaks of, as the client has named it."""
        for knob, names in KNOB_FIELDS.items():
            if message.startswith(knob) or (knob == "effort" and "effort" in message.split(":")[0]):
                for name in names:
                    if getattr(self, name) is not None:
                        return name
        return None


def read_request(body: object) -> ChatRequest:
    """The request in the JSON ``body``; fields inside ``extra_body`` count as fields of the request.

    Raises:
        RequestError: for a field that is unknown, missing or has a wrong value.
    """
    if not isinstance(body, dict):
        raise RequestError("the body is no JSON object: expected the fields of a chat completion")
    extra = body.get("extra_body")
    if isinstance(extra, dict):
        body = {**{name: value for name, value in body.items() if name != "extra_body"}, **extra}
    try:
        return ChatRequest.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        if first["type"] == "extra_forbidden":
            known = ", ".join(ChatRequest.model_fields)
            message = f"{where} is unknown or not supported: expected one of {known}; drop it"
        elif first["type"] == "missing":
            message = f"{where} is missing: expected a value; give it"
        elif isinstance(cause := first.get("ctx", {}).get("error"), BudgetctlError):
            message = str(cause)
        else:
            message = (
                f"{where}={shown(first['input'])} is refused: {first['msg'].removeprefix('Value error, ')}"
            )
        raise RequestError(_valid(message), _valid(str(first["loc"][0])) if first["loc"] else None) from None


def _valid(text: str) -> str:
    """Without halves of characters that JSON may hold and UTF-8 may not."""
    return text.encode("utf-8", "backslashreplace").decode()
