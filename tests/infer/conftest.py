"""A model that reads and writes text, in memory and in a folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from moesaic.checkpoint.save import save
from moesaic.config.model import ModelConfig
from moesaic.data.bpe import train_bpe
from moesaic.data.tokenizer import Tokenizer
from moesaic.model.build import build_model
from moesaic.model.transformer import Transformer

VOCAB = 300


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """All bytes, and merges of a few words."""
    return train_bpe(["one two three four five, " * 20], VOCAB)


@pytest.fixture
def model(tiny_config: Callable[..., ModelConfig]) -> Transformer:
    """A V3 model of the tokenizer's vocabulary, with random weights."""
    return build_model(tiny_config("v3", vocab_size=VOCAB, eos_token_id=None), seed=1)


@pytest.fixture
def folder(tmp_path: Path, model: Transformer, tokenizer: Tokenizer) -> Path:
    """The checkpoint of both."""
    save(tmp_path / "model", model.config, model.state_dict(), "float32")
    tokenizer.save(tmp_path / "model")
    return tmp_path / "model"
