"""A tiny model, served."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from served import client_of, plain_client_of, served
from shards import Home, MakeHome

from moesaic.config.model import ModelConfig
from moesaic.config.presets import get_preset
from moesaic.data.chat_templates import TEMPLATES
from moesaic.data.tokenizer import Tokenizer
from moesaic.model.build import build_model
from moesaic.model.transformer import Transformer
from moesaic.serve.run import Server

CONFIG = get_preset("tiny-v2").changed(
    vocab_size=320,
    hidden_size=32,
    num_hidden_layers=2,
    max_position_embeddings=512,
    initializer_range=0.1,
    eos_token_id=None,
)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Characters and some of their pairs, with a chat template and no end of text: a model with
    random weights is then as long as it may be."""
    plain = Tokenizer.load(Path(__file__).parents[1] / "golden" / "tokenizer")
    settings = {**plain.settings, "chat_template": TEMPLATES["deepseek-v2"]}
    return replace(plain, settings=settings, eos_ids=())


@pytest.fixture(scope="session")
def model() -> Transformer:
    return build_model(CONFIG, seed=1).requires_grad_(False)


@pytest.fixture(scope="module")
def server(model: Transformer, tokenizer: Tokenizer) -> Iterator[Server]:
    with served(model, tokenizer, max_body_bytes=20_000) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with client_of(server) as opened:
        yield opened


@pytest.fixture(scope="module")
def plain(server: Server) -> Iterator[httpx.Client]:
    with plain_client_of(server) as opened:
        yield opened


@pytest.fixture
def make_home(
    tmp_path: Path, tiny_config: Callable[..., ModelConfig], tokenizer: Tokenizer
) -> MakeHome:
    """``make_home(family, dtype, **changes)``"""

    def make(family: str = "v2", dtype: str = "bfloat16", **changes: Any) -> Home:
        config = tiny_config(family, vocab_size=320, eos_token_id=None, **changes)
        return Home.make(tmp_path, config, tokenizer, dtype)

    return make


@pytest.fixture
def home(make_home: MakeHome) -> Home:
    return make_home()
