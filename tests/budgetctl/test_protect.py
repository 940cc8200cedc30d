"""A close does not cut a character or a code fence in two."""

from __future__ import annotations

import codecs
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from budgetctl import on_device, protect, score_edits
from budgetctl.closing import Boundaries
from budgetctl.controller import BudgetController
from budgetctl.delimiters import find_delimiters
from budgetctl.protect import Spans, missing_bytes, token_bytes
from budgetctl.sampling import SeededSampler

FENCE, THINK, CLOSE = 257, 261, 262


def unfinished(piece: bytes) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    decoder.decode(piece)
    return decoder.getstate()[0] != b""


@given(st.text(), st.integers(0, 3))
def test_missing_bytes_against_pythons_decoder(text: str, cut: int) -> None:
    """What is missing is the smallest number of bytes that completes the character."""
    whole = text.encode(errors="ignore")
    piece = whole[: len(whole) - cut]
    missing = missing_bytes(piece)
    completed = next((n for n in range(4) if n <= cut and not unfinished(whole[: len(piece) + n])), None)
    assert missing == completed


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_bytes_of_tokens_join_to_the_text(text: str) -> None:
    backend = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pre_tokenizers.ByteLevel.alphabet())}, [])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    pieces = token_bytes(tokenizer, len(tokenizer))
    assert b"".join(pieces[i] for i in tokenizer.encode(text)) == text.encode()


def test_byte_fallback_tokens() -> None:
    pieces = ["<unk>", "a", "<0xE4>", "<0xB8>", "<0xzz>", "\u4e2d"]
    backend = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, "<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert token_bytes(tokenizer, 6) == [b"<unk>", b"a", b"\xe4", b"\xb8", b"<0xzz>", "\u4e2d".encode()]
    assert [missing_bytes(piece) for piece in token_bytes(tokenizer, 6)] == [0, 0, 2, 0, 0, 0]


class ValidText:
    """A processor that allows well-formed UTF-8 alone, as a model that has learned to write does."""

    def __init__(self, tokenizer: Any, width: int) -> None:
        self.pieces = token_bytes(tokenizer, 256)
        self.width = width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        allowed = scores.clone()
        for row, ids in enumerate(input_ids[:, self.width :].tolist()):
            written = b"".join(self.pieces[i] for i in ids if i < 256)
            for token, piece in enumerate(self.pieces):
                try:
                    codecs.getincrementaldecoder("utf-8")().decode(written + piece)
                except UnicodeDecodeError:
                    allowed[row, token] = -torch.inf
            if unfinished(written):
                allowed[row, 256:] = -torch.inf
        return allowed


def prompts_of(tokenizer: Any, texts: list[str]) -> torch.Tensor:
    rendered = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": t}], tokenize=False, add_generation_prompt=True
        )
        for t in texts
    ]
    return tokenizer(rendered, return_tensors="pt", padding=True, add_special_tokens=False).input_ids


def thoughts(tokenizer: Any, ids: torch.Tensor, width: int) -> list[list[int]]:
    rows = [row[: row.index(CLOSE)] if CLOSE in row else row for row in ids[:, width:].tolist()]
    return [[token for token in row if token != tokenizer.pad_token_id] for row in rows]


@pytest.mark.parametrize("seed", range(3))
def test_no_character_is_cut(seed: int, byte_tokenizer: Any, random_model: Any, write: Any) -> None:
    prompts = prompts_of(byte_tokenizer, ["a" * n for n in range(12)])
    width = prompts.shape[1]
    wide = {token: 3.0 for token in range(256) if missing_bytes(token_bytes(byte_tokenizer, 256)[token])}
    never = dict.fromkeys((258, 259, 260, THINK, CLOSE), -50.0)
    model = random_model(len(byte_tokenizer), byte_tokenizer.pad_token_id, seed, {**wide, **never})
    budgets = list(range(12))
    cut = []
    for boundaries in (Boundaries.from_tokenizer(byte_tokenizer, len(byte_tokenizer)), None):
        controller = BudgetController(
            find_delimiters(byte_tokenizer),
            thinking_budget=budgets,
            boundaries=boundaries,
            prompt_length=width,
        )
        valid = ValidText(byte_tokenizer, width)
        ids = write(model, prompts, [valid, controller], 13, eos=258, pad=259)
        rows = thoughts(byte_tokenizer, ids, width)
        assert all(len(row) <= budget for row, budget in zip(rows, budgets, strict=True))
        assert CLOSE in ids[-1].tolist()
        pieces = token_bytes(byte_tokenizer, 256)
        cut.append(sum(unfinished(b"".join(pieces[i] for i in row if i < 256)) for row in rows))
    assert cut[0] == 0
    assert cut[1] >= 2  # without the table, characters are cut


@pytest.mark.parametrize("seed", range(4))
def test_no_fence_is_left_open(seed: int, byte_tokenizer: Any, random_model: Any, write: Any) -> None:
    prompts = prompts_of(byte_tokenizer, ["b" * n for n in range(16)])
    width = prompts.shape[1]
    bias = {FENCE: 8.0, **dict.fromkeys((258, 259, 260, THINK, CLOSE), -50.0)}
    model = random_model(len(byte_tokenizer), byte_tokenizer.pad_token_id, seed, bias)
    budgets = list(range(3, 19))
    left_open = []
    for boundaries in (Boundaries.from_tokenizer(byte_tokenizer, len(byte_tokenizer)), None):
        controller = BudgetController(
            find_delimiters(byte_tokenizer),
            thinking_budget=budgets,
            boundaries=boundaries,
            prompt_length=width,
        )
        ids = write(model, prompts, [controller, SeededSampler(range(16), width)], 22, eos=258, pad=259)
        rows = thoughts(byte_tokenizer, ids, width)
        assert all(len(row) <= budget for row, budget in zip(rows, budgets, strict=True))
        assert all(CLOSE in row for row in ids[:, width:].tolist())
        left_open.append(sum(row.count(FENCE) % 2 for row in rows))
        if boundaries is not None:
            assert sum(FENCE in row for row in rows) >= 4  # fences are written where there is room
    assert left_open[0] == 0
    assert left_open[1] >= 2


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("fence_end", [(2, 9), ()])
def test_what_is_banned_on_the_host_is_what_a_device_bans(
    in_place: bool, fence_end: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every number of tokens left, in fences and outside, in rows whose other tokens are banned too; and for more
    tokens than are looked at first."""
    generator = torch.Generator().manual_seed(0)
    vocab = 300
    fence = torch.zeros(vocab, dtype=torch.bool)
    fence[[9, 280]] = True
    spans = Spans(fence, fence_end, torch.randint(0, 4, (vocab,), generator=generator))
    left = torch.arange(9).repeat(4)
    inside = torch.arange(36) % 18 >= 9
    rows = torch.rand(36, generator=generator) < 0.8
    scores = torch.randn(36, vocab, generator=generator)
    scores[18:] = -torch.inf
    scores[18:, 9] = 0.5
    scores[27:, 299] = 0.1
    ids = torch.randint(0, 12, (36, 4), generator=generator)
    given = scores.clone()
    found = spans.keep_whole(given, ids, rows, inside, left, in_place=in_place)
    assert (found is given) == in_place
    assert in_place or torch.equal(given, scores)
    for module in (protect, score_edits, on_device):
        monkeypatch.setattr(module, "may_look", lambda device: False)
    assert torch.equal(found, spans.keep_whole(scores, ids, rows, inside, left))
