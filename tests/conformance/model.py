"""A tiny transformer that opens and closes thoughts at random, its tokenizer, and a length predictor for it."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from budgetctl.predictors.gamma import GammaLengthPredictor, GammaPredictorConfig

VOCAB, HIDDEN = 40, 32
PAD, EOS, LINE, STOP, DIGIT, OPEN, TOOL = 0, 1, 2, 3, 4, 10, 20


def thinking_qwen3(seed: int = 0, spread: float = 0.02, head_dim: int = 16) -> Qwen3ForCausalLM:
    """Random weights in float64; markers are likely tokens, and begun ones are often gone on with. With a large
    ``spread`` of the weights the layers weigh more, and what is written depends on the whole prefix."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        initializer_range=spread,
        intermediate_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=head_dim,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    model = Qwen3ForCausalLM(config).double().eval()
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
    with torch.no_grad():
        embedding.normal_()
        head.normal_(0, 0.4)
        shared, begun = torch.zeros(HIDDEN).double(), torch.zeros(HIDDEN).double()
        shared[-1], begun[-2] = 1, 1
        embedding[:, -2:] = 0
        embedding += 2 * shared
        embedding[[12, 13, 15, 16]] += 4 * begun
        head[:, -2:] = 0
        head[[13, 14, 17]] += 3 * begun
        head[[PAD, 7, 8, 9]] -= 9 * shared  # hardly ever written
        head[[11, 12, 15, 16]] += 0.5 * shared
        head[OPEN] += 1.2 * shared
        head[EOS] -= shared
    model.generation_config = GenerationConfig(eos_token_id=EOS, pad_token_id=PAD)
    return model


def short_thoughts() -> GammaLengthPredictor:
    """A random predictor in float64 that foresees some six tokens."""
    torch.manual_seed(1)
    predictor = GammaLengthPredictor(GammaPredictorConfig(HIDDEN, 8, 2)).double()
    with torch.no_grad():
        predictor.heads.weight.mul_(4)
        predictor.heads.bias.copy_(torch.tensor([6.0, 3.0]))
        predictor.token_query.weight.normal_(0, 0.3)
    return predictor


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Token ``i`` is the word ``w<i>``; some end a line or a sentence."""
    words = {f"w{i}": i for i in range(VOCAB)}
    special = {LINE: "\n", STOP: ".", DIGIT: "7"}
    words = {special.get(i, word): i for word, i in words.items()}
    backend = Tokenizer(models.WordLevel(words, unk_token="w39"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="w1", pad_token="w0", padding_side="left"
    )
