"""A client that lets the server hang is given up; one that is only slow is not."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from socket import IPPROTO_TCP, SO_RCVBUF, SOL_SOCKET, TCP_MAXSEG, create_connection, socket
from time import monotonic, sleep

import pytest
from jobs import wait_for
from served import N_BLOCKS, NAME, PATIENCE_S, served

from moesaic.data.tokenizer import Tokenizer
from moesaic.model.transformer import Transformer
from moesaic.serve.run import Server

LONG = {"model": NAME, "prompt": "To", "n": 8, "logprobs": 20, "stream": True}
"""Few tokens of it are more bytes than lie between a server and a client that does not read."""


@contextmanager
def narrow(server: Server) -> Iterator[socket]:
    """A connection that holds little on its way: small segments, and small windows."""
    with socket() as client:
        client.setsockopt(SOL_SOCKET, SO_RCVBUF, 2048)
        client.setsockopt(IPPROTO_TCP, TCP_MAXSEG, 536)
        client.settimeout(PATIENCE_S)
        client.connect(("127.0.0.1", port_of(server)))
        yield client


def plain_client(server: Server) -> socket:
    return create_connection(("127.0.0.1", port_of(server)), PATIENCE_S)


def port_of(server: Server) -> int:
    return int(server.address.rpartition(":")[2])


def request_of(told: dict[str, object], path: str = "/v1/completions") -> bytes:
    body = json.dumps(told).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def received(client: socket, most: int = 4096) -> bytes:
    """What comes; nothing where the connection was ended."""
    try:
        return client.recv(most)
    except ConnectionResetError:
        return b""


def everything(client: socket) -> bytes:
    return b"".join(iter(lambda: received(client), b""))


def test_a_stream_that_its_client_never_takes_is_cancelled(
    model: Transformer, tokenizer: Tokenizer
):
    with served(model, tokenizer, unread_s=0.3) as server, narrow(server) as client:
        engine = server.served.engine
        client.sendall(request_of({**LONG, "max_tokens": 500}))
        wait_for(lambda: engine.stats().meter.requests["cancelled"] == LONG["n"])
        wait_for(lambda: engine.stats().blocks_free == N_BLOCKS)
        taken = everything(client)
    assert taken.startswith(b"HTTP/1.1 200 OK")
    assert b"[DONE]" not in taken


def test_a_whole_answer_that_its_client_never_takes_is_given_up(
    model: Transformer, tokenizer: Tokenizer
):
    many = {"model": NAME, "input": [[5]] * 160}
    with served(model, tokenizer, unread_s=0.3) as server, narrow(server) as client:
        client.sendall(request_of(many, "/v1/embeddings"))
        wait_for(lambda: server.served.engine.stats().meter.requests["complete"] == 160)
        sleep(1.0)
        head, _, body = everything(client).partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None
    assert len(body) < int(length[1])


def test_a_client_that_takes_its_answer_slowly_gets_all_of_it(
    model: Transformer, tokenizer: Tokenizer
):
    with served(model, tokenizer, unread_s=0.5) as server, narrow(server) as client:
        client.sendall(request_of({**LONG, "max_tokens": 12}))
        taken, began = b"", monotonic()
        while not taken.endswith(b"0\r\n\r\n"):
            sleep(0.02)
            taken += (part := received(client, 2048))
            assert part
    assert b"[DONE]" in taken
    assert monotonic() - began > 0.5


def test_a_request_whose_body_does_not_come_is_told_so(model: Transformer, tokenizer: Tokenizer):
    with served(model, tokenizer, arrival_s=0.2) as server, plain_client(server) as client:
        client.sendall(request_of(LONG)[:-1])
        answer = received(client)
    assert b" 408 " in answer
    assert b"the request was not here within 0.2 s; send it again" in answer


def test_a_client_that_leaves_within_its_request_is_no_failure_of_the_server(
    model: Transformer, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
):
    with served(model, tokenizer) as server, plain_client(server) as client:
        client.sendall(request_of(LONG)[:-1])
        client.close()
        with plain_client(server) as other:
            other.sendall(request_of({"model": NAME, "prompt": "To", "max_tokens": 1}))
            assert received(other).startswith(b"HTTP/1.1 200 OK")
    assert not caplog.records


@pytest.mark.parametrize("begun", [b"", b"POST /v1/comple"])
def test_a_connection_on_which_no_request_begins_is_ended(
    model: Transformer, tokenizer: Tokenizer, begun: bytes
):
    with served(model, tokenizer, arrival_s=0.2) as server, plain_client(server) as client:
        client.sendall(begun)
        assert received(client) == b""


def test_an_answer_may_take_longer_than_a_request_may(model: Transformer, tokenizer: Tokenizer):
    with served(model, tokenizer, arrival_s=0.5) as server, plain_client(server) as client:
        for _ in range(2):
            client.sendall(request_of({"model": NAME, "prompt": "To", "max_tokens": 40}))
            answer = b""
            while b'"completion_tokens":40' not in answer:
                answer += (part := received(client))
                assert part
