"""A model behind a real server on this machine, and the client that people use."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import httpx
import openai
import torch

from moesaic.config.serve import ServeConfig
from moesaic.data.tokenizer import Tokenizer
from moesaic.infer.batching import BatchEngine
from moesaic.infer.blocks import BlockPool
from moesaic.infer.decoder import TorchDecoder
from moesaic.model.transformer import Transformer
from moesaic.serve.run import Server
from moesaic.serve.served import Served

N_BLOCKS = 48
PATIENCE_S = 60.0
"""No test waits longer for a server."""
NAME = "tiny"


@contextmanager
def served(model: Transformer, tokenizer: Tokenizer, **settings: object) -> Iterator[Server]:
    """A running server of a model."""
    pool = BlockPool(model.config, N_BLOCKS, dtype=torch.float32)
    config = ServeConfig.parse({"closing_s": 2.0, **settings})
    engine = BatchEngine(TorchDecoder(model, pool), tokenizer, config)
    positions = model.config.max_position_embeddings
    with running(Served(NAME, engine, tokenizer, positions)) as server:
        yield server


@contextmanager
def running(what: Served) -> Iterator[Server]:
    """A running server, which has given all blocks back in the end."""
    pool, server = what.engine.decoder.pool, Server(what, "127.0.0.1", 0)
    thread = Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert pool.n_free == pool.n_blocks


def client_of(server: Server, key: str = "any") -> openai.OpenAI:
    url = f"{server.address}/v1"
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=PATIENCE_S)


def plain_client_of(server: Server) -> httpx.Client:
    return httpx.Client(base_url=server.address, timeout=PATIENCE_S)
