"""The embedded reasoner's tokenizer, built once, and a tiny model with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from budgetctl.training.reasoner.tokenizer import build_tokenizer
from tests.training.tiny import save_tiny_model


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"), tokenizer)
