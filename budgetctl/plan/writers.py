"""Models that write plans: one loaded here, or one behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from budgetctl.errors import BudgetctlError


class Written(NamedTuple):
    """A reply and the tokens that were written for it, thought included."""

    text: str
    tokens: int


class Writer(Protocol):
    """Answers a prompt; ``name`` tells models apart whose plans are kept on disk."""

    name: str

    def __call__(self, prompt: str) -> Written: ...


class ModelWriter:
    """A Hugging Face causal language model, decoding greedily.

    Args:
        model: that ``generate`` is called on.
        tokenizer: its tokenizer; its chat template is used where it has one.
        max_new_tokens: of a reply.
        name: by default the model's name or path.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, max_new_tokens: int = 1024, name: str | None = None
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_new_tokens = max_new_tokens
        self.name = name or str(getattr(model.config, "_name_or_path", "") or type(model).__name__)

    def __call__(self, prompt: str) -> Written:
        """The reply to one prompt."""
        text = prompt
        if getattr(self.tokenizer, "chat_template", None):
            messages = [{"role": "user", "content": prompt}]
            text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        inputs = self.tokenizer(text, return_tensors="pt", add_special_tokens=False).to(self.model.device)
        pad = next(i for i in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0) if i is not None)
        output = self.model.generate(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=self.max_new_tokens,
            pad_token_id=pad,
        )
        ids = output[0, inputs.input_ids.shape[1] :].tolist()
        return Written(self.tokenizer.decode(ids, skip_special_tokens=False), len(ids))


class EndpointWriter:
    """A model behind an OpenAI-compatible endpoint, such as ``budgetctl serve``; needs the ``openai`` package.

    Args:
        model: its name there.
        base_url: of the endpoint, None for the package's own default.
        api_key: None for the one in the environment.
        max_tokens: of a reply.
        timeout: seconds for one reply.

    Raises:
        BudgetctlError: without the package, or without a key where one is needed.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        max_tokens: int = 2048,
        timeout: float = 120.0,
    ) -> None:
        try:
            import openai
        except ImportError:
            raise BudgetctlError(
                "a planner behind an endpoint needs the openai package: expected it installed; pip install openai"
            ) from None
        try:
            self._client = openai.OpenAI(base_url=base_url, api_key=api_key, timeout=timeout)
        except openai.OpenAIError as error:
            raise BudgetctlError(f"the planner's endpoint: {error}; pass api_key") from None
        self._failures = openai.OpenAIError
        self.model, self.max_tokens = model, max_tokens
        self.name = f"{model} at {self._client.base_url}"

    def __call__(self, prompt: str) -> Written:
        """The reply to one prompt.

        Raises:
            BudgetctlError: when the endpoint does not answer.
        """
        try:
            reply = self._client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": prompt}],
                max_tokens=self.max_tokens,
                temperature=0,
            )
        except self._failures as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BudgetctlError(
                f"the planner {self.name} did not answer ({first}): expected an OpenAI-compatible endpoint; check its "
                "address and the model's name"
            ) from error
        text = reply.choices[0].message.content if reply.choices else None
        return Written(text or "", reply.usage.completion_tokens if reply.usage else 0)
