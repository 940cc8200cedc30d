"""What guidance is timed on: the embedded reasoner, any model, or the shapes of a model with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache, Qwen3Config, StaticCache

from budgetctl.closing import Boundaries
from budgetctl.delimiters import ThinkingDelimiters
from budgetctl.errors import BudgetctlError
from budgetctl.forecast import LengthForecast
from budgetctl.predictors.gamma import GammaLengthPredictor, GammaPredictorConfig
from budgetctl.predictors.hidden_state import LogitsHiddenState
from budgetctl.protect import Spans

#: Shapes of published configurations: hidden, layers, query heads, key-value heads, MLP width, tied embeddings.
SHAPES = {
    "qwen3-0.6b": (1024, 28, 16, 8, 3072, True),
    "qwen3-1.7b": (2048, 28, 16, 8, 6144, True),
    "qwen3-8b": (4096, 36, 32, 8, 12288, False),
}
QWEN3_VOCAB = 151_936
EOS, HEADER, OPEN, CLOSE = 1, (8, 9), 10, 11
#: Tokens that are no markers begin here.
PLAIN = 64
DELIMITERS = ThinkingDelimiters(
    (OPEN,), ((CLOSE,),), (CLOSE,), HEADER, opened_by_template=True, eos_ids=(EOS,)
)


@dataclass(frozen=True)
class Subject:
    """Something that logits come from.

    Args:
        name: in the report.
        hidden: d.
        layers: of the transformer.
        forecast: a length predictor at work on its logits; of random weights, which cost the same.
        boundaries: line ends and the like, by token.
        model: None where only logits are made, and there is no decode step to compare with.
        scores: [n, V] logits; rows are repeated for larger batches.
    """

    name: str
    hidden: int
    layers: int
    forecast: LengthForecast
    boundaries: Boundaries
    model: Any
    scores: torch.Tensor

    @property
    def vocab(self) -> int:
        return self.scores.shape[1]

    @property
    def device(self) -> torch.device:
        return self.scores.device

    def most_thinking_tokens(self, steps: int) -> int:
        """Thinking tokens that the model has positions for, with ``steps`` more."""
        if self.model is None:
            return 1 << 20
        return int(self.model.config.get_text_config().max_position_embeddings) - steps - 8

    def logits(self, batch: int) -> torch.Tensor:
        """[batch, V]."""
        return self.scores[torch.arange(batch, device=self.device) % len(self.scores)]

    def rows(self, batch: int, tokens: int) -> torch.Tensor:
        """[batch, 3 + tokens] int64: a header, an opened thought, and ``tokens`` plain tokens of it."""
        generator = torch.Generator().manual_seed(0)
        plain = torch.randint(PLAIN, self.vocab, (batch, tokens), generator=generator)
        opened = torch.tensor([*HEADER, OPEN]).expand(batch, -1)
        return torch.cat([opened, plain], 1).to(self.device)


def random_forecast(head: torch.Tensor) -> LengthForecast:
    """A forecast of random weights on the output embedding [V, d]."""
    torch.manual_seed(0)
    predictor = GammaLengthPredictor(GammaPredictorConfig(hidden_size=head.shape[1]))
    return LengthForecast(predictor, LogitsHiddenState(head), head, 2.0)


def random_boundaries(vocab: int, device: torch.device) -> Boundaries:
    """Tables with about as many line ends, fences and broken characters as a byte-level tokenizer of that size has."""
    ids = torch.arange(vocab, device=device)
    fence = ids % 9973 == 12
    spans = Spans(fence, (13, 12), torch.where(ids % 997 == 0, 2, 0))
    return Boundaries(ids % 200 == 0, ids % 150 == 1, ids % 1500 < 10, spans)


def logits_alone(vocab: int, device: torch.device, hidden: int = 1024, rows: int = 8) -> Subject:
    """Logits of a random output embedding of this vocabulary, without a model."""
    torch.manual_seed(0)
    head = torch.randn(vocab, hidden, device=device) * 0.02
    scores = 5 * torch.randn(rows, hidden, device=device) @ head.T
    return Subject(
        f"V = {vocab:,}", hidden, 28, random_forecast(head), random_boundaries(vocab, device), None, scores
    )


def model_subject(model: Any, name: str) -> Subject:
    """A model with weights of its own; its predictor has random ones."""
    head = model.get_output_embeddings().weight.detach()
    config = model.config.get_text_config()
    ids = torch.randint(PLAIN, head.shape[0], (8, 16), device=head.device)
    with torch.inference_mode():
        scores = model(ids).logits[:, -1].float()
    boundaries = random_boundaries(head.shape[0], head.device)
    return Subject(
        name,
        head.shape[1],
        config.num_hidden_layers,
        random_forecast(head.float()),
        boundaries,
        model,
        scores,
    )


def shape_config(name: str, vocab: int = QWEN3_VOCAB) -> Qwen3Config:
    """The configuration of a Qwen3 of the shapes that ``name`` has.

    Raises:
        BudgetctlError: for a name that is none of ``SHAPES``.
    """
    if name not in SHAPES:
        raise BudgetctlError(f"unknown shape {name!r}: expected one of {', '.join(SHAPES)}")
    hidden, layers, heads, kv_heads, width, tied = SHAPES[name]
    return Qwen3Config(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=width,
        head_dim=128,
        tie_word_embeddings=tied,
    )


def shaped_model(config: Qwen3Config, device: torch.device, dtype: torch.dtype) -> Any:
    """A model of random weights; nothing is downloaded."""
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def shaped(name: str, device: torch.device, dtype: torch.dtype, vocab: int = QWEN3_VOCAB) -> Subject:
    """A Qwen3 of the shapes that ``name`` has, with random weights.

    Raises:
        BudgetctlError: for a name that is none of ``SHAPES``.
    """
    return model_subject(shaped_model(shape_config(name, vocab), device, dtype), name)


def decode_step(subject: Subject, batch: int, context: int) -> Callable[[], object]:
    """One decoding step of the model for ``batch`` rows after ``context`` tokens; the same one at every call."""
    ids, model = subject.rows(batch, context - 3), subject.model
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(ids, past_key_values=cache, use_cache=True)

    def step() -> object:
        output = model(ids[:, -1:], past_key_values=cache, use_cache=True)
        cache.crop(-1)
        return output.logits

    return step


def compiled_decode_step(
    subject: Subject, batch: int, context: int, steps: int, **compile_options: object
) -> Callable[[], object]:
    """The same, compiled on a static cache, as fast decoding does it; each call goes on by a token, ``steps`` at most.

    Args:
        compile_options: of ``torch.compile``; CUDA graphs by default.
    """
    ids, model = subject.rows(batch, context - 3), subject.model
    cache = StaticCache(config=model.config, max_cache_len=context + steps)
    options: dict[str, Any] = {"mode": "reduce-overhead", "fullgraph": True, **compile_options}
    forward = torch.compile(model.forward, **options)
    with torch.inference_mode():
        model(ids, past_key_values=cache)
    return lambda: forward(ids[:, -1:], past_key_values=cache).logits
