"""A model that reads and writes a few words, in memory and in a folder."""

from collections.abc import Callable
from pathlib import Path

import pytest
from models import random_model
from small_tasks import Counted

from moesaic.checkpoint.save import save
from moesaic.config.eval import EvalConfig
from moesaic.config.model import ModelConfig
from moesaic.data.bpe import train_bpe
from moesaic.data.tokenizer import Tokenizer
from moesaic.model.transformer import Transformer

VOCAB = 300
WORDS = "one two three four five six seven eight nine ten"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """All bytes, and merges of a few words."""
    return train_bpe([f"{WORDS}. " * 20], VOCAB)


@pytest.fixture
def model(tiny_config: Callable[..., ModelConfig]) -> Transformer:
    """A V3 model of the tokenizer's vocabulary that sees 128 tokens, with random weights."""
    return random_model(tiny_config("v3", vocab_size=VOCAB))


@pytest.fixture
def folder(tmp_path: Path, model: Transformer, tokenizer: Tokenizer) -> Path:
    """The checkpoint of both."""
    save(tmp_path / "model", model.config, model.state_dict(), "float32")
    tokenizer.save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def engine(model: Transformer, tokenizer: Tokenizer) -> Counted:
    """Of that model, with small batches."""
    return Counted(model, tokenizer, EvalConfig(batch_tokens=200))
