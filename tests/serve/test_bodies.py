"""A body that is no request is refused with the reason."""

import json
from typing import Any

import httpx
import pytest
from served import NAME


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the body is not JSON"),
        (b"\xff", "the body is not JSON"),
        (b"[" * 10_000, "the body is not JSON"),
        (b"[1]", "the body is a list; send a JSON object"),
    ],
)
def test_a_malformed_body_is_refused(plain: httpx.Client, body: bytes, message: str):
    answer = plain.post("/v1/completions", content=body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("completions", {"prompt": "a\ud800"}),
        ("chat/completions", {"messages": [{"role": "user", "content": "a\ud800"}]}),
        ("embeddings", {"input": ["a\ud800"]}),
    ],
)
def test_a_text_that_is_none_is_refused(plain: httpx.Client, path: str, asked: dict[str, Any]):
    answer = plain.post(f"/v1/{path}", content=json.dumps({"model": NAME, **asked}))
    assert answer.status_code == 400
    assert "half of a surrogate pair" in answer.json()["error"]["message"]


def test_an_oversized_body_is_refused(plain: httpx.Client):
    body = json.dumps({"model": NAME, "prompt": "a" * 20_000})
    answer = plain.post("/v1/completions", content=body)
    assert answer.status_code == 413
    assert "more than 20000 bytes" in answer.json()["error"]["message"]
