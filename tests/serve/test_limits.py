"""Who is let in, and what happens where there is no room or no time."""

from contextlib import suppress
from socket import create_connection
from threading import Thread
from time import monotonic

import httpx
import openai
import pytest
from served import NAME, PATIENCE_S, client_of, plain_client_of, served

from moesaic.data.tokenizer import Tokenizer
from moesaic.infer.batching import BatchEngine
from moesaic.infer.blocks import BlockPool
from moesaic.infer.decoder import TorchDecoder
from moesaic.model.transformer import Transformer
from moesaic.serve.run import Server
from moesaic.serve.served import Served


def test_who_comes_before_the_server_runs_is_answered_when_it_does(
    model: Transformer, tokenizer: Tokenizer
):
    engine = BatchEngine(TorchDecoder(model, BlockPool(model.config, 4)), tokenizer)
    server = Server(Served(NAME, engine, tokenizer, 64), "127.0.0.1", 0)
    running = Thread(target=server.run)
    with create_connection(("127.0.0.1", int(server.address.rpartition(":")[2])), 20) as early:
        early.sendall(b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n")
        running.start()
        assert early.recv(100).startswith(b"HTTP/1.1 200 OK")
        server.stop()
    running.join(PATIENCE_S)
    assert not running.is_alive()


def test_a_key_is_asked_for(model: Transformer, tokenizer: Tokenizer):
    with served(model, tokenizer, api_keys=["first", "second"]) as guarded:
        for key in ("first", "second"):
            with client_of(guarded, key) as client:
                client.completions.create(model=NAME, prompt="a", max_tokens=1)
        with (
            client_of(guarded, "third") as client,
            pytest.raises(openai.AuthenticationError, match="the API key is missing or wrong"),
        ):
            client.completions.create(model=NAME, prompt="a", max_tokens=1)
        with plain_client_of(guarded) as plain:
            assert plain.get("/metrics").status_code == 401
            assert plain.get("/health").status_code == 200


def test_a_full_queue_is_told_as_busy(model: Transformer, tokenizer: Tokenizer):
    with (
        served(model, tokenizer, max_running=1, max_queue=0) as small,
        client_of(small) as client,
    ):
        stream = client.completions.create(model=NAME, prompt="To", max_tokens=500, stream=True)
        next(iter(stream))
        with pytest.raises(openai.InternalServerError) as busy:
            client.completions.create(model=NAME, prompt="a")
        assert busy.value.status_code == 503
        assert busy.value.response.headers["retry-after"] == "1"
        stream.close()


def test_a_stream_that_fails_ends_with_its_error(model: Transformer, tokenizer: Tokenizer):
    with served(model, tokenizer, timeout_s=0.2) as hasty, client_of(hasty) as client:
        stream = client.completions.create(model=NAME, prompt="To", max_tokens=505, stream=True)
        with pytest.raises(openai.APIError, match=r"was not finished within 0\.2 s"):
            list(stream)


def test_a_running_answer_may_end_when_the_server_is_stopped(
    model: Transformer, tokenizer: Tokenizer
):
    with served(model, tokenizer, closing_s=30.0) as stopping, client_of(stopping) as client:
        stream = client.completions.create(model=NAME, prompt="To", max_tokens=60, stream=True)
        events = iter(stream)
        next(events)
        stopping.stop()
        *_, last = events
        assert last.choices[0].finish_reason == "length"


def test_an_answer_that_takes_too_long_is_cut_when_the_server_is_stopped(
    model: Transformer, tokenizer: Tokenizer
):
    with served(model, tokenizer, closing_s=0.0) as stopping, client_of(stopping) as client:
        asked = [
            client.completions.create(model=NAME, prompt="To", max_tokens=505, n=16, stream=True)
            for _ in range(4)
        ]
        next(iter(asked[0]))
        began = monotonic()
        stopping.stop()
        for stream in asked:
            with suppress(openai.APIError, httpx.TransportError):
                list(stream)
        assert monotonic() - began < 30
