"""Clients of a server, hundreds at once: patient, slow, some that leave, and some that err."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx

_KINDS = ("reads",) * 12 + ("leaves",) * 4 + ("slow",) * 2 + ("malformed", "oversized")
"""What twenty clients are."""
_MALFORMED: tuple[bytes, ...] = (
    b"{",
    b"\xff\xfe",
    b'{"model": "load", "prompt": 5}',
    b'{"model": "load", "prompt": "a", "temperature": 9}',
    b'{"model": "other", "prompt": "a"}',
    b'{"model": "load", "prompt": "a", "max_tokens": 1000000}',
)
_REFUSED = frozenset({400, 404, 413})
_BUSY = 503


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt with its settings, and the answer that it has alone."""

    body: Mapping[str, Any]
    text: str


@dataclass(slots=True)
class Seen:
    """What the clients of a round saw."""

    ends: Counter[str] = field(default_factory=Counter)
    """How each of them ended."""
    first_s: list[float] = field(default_factory=list)
    """From asking to the first text."""
    between_s: list[float] = field(default_factory=list)
    """From one text to the next, of clients that read at once."""
    seconds: float = 0.0


async def alone(address: str, bodies: Sequence[Mapping[str, Any]]) -> list[Question]:
    """The answers to some requests, each when nothing else is asked."""
    async with httpx.AsyncClient(base_url=address, timeout=120) as client:
        found = []
        for body in bodies:
            answer = (await client.post("/completions", json=body)).raise_for_status()
            found.append(Question(body, answer.json()["choices"][0]["text"]))
        return found


async def crowd(
    address: str, questions: Sequence[Question], n: int, within_s: float, seed: int
) -> Seen:
    """Let clients come within some seconds, and wait for all of them."""
    seen, random = Seen(), Random(seed)
    limits = httpx.Limits(max_connections=n, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=240) as client:
        start = time.perf_counter()
        places = list(range(n))
        random.shuffle(places)
        each = [
            _visit(client, seen, questions[place % len(questions)], place, within_s, Random(place))
            for place in places
        ]
        await asyncio.gather(*each)
        seen.seconds = time.perf_counter() - start
    return seen


async def _visit(
    client: httpx.AsyncClient,
    seen: Seen,
    question: Question,
    place: int,
    within_s: float,
    random: Random,
) -> None:
    """One client, from coming to leaving."""
    await asyncio.sleep(random.random() * within_s)
    kind = _KINDS[place % len(_KINDS)]
    try:
        if kind == "malformed":
            end = await _err(client, random.choice(_MALFORMED))
        elif kind == "oversized":
            end = await _err(client, b'{"prompt": "' + b"a" * 300_000 + b'"}')
        else:
            end = await _read(client, seen, question, kind, random)
    except httpx.HTTPError as error:
        end = f"failed: {type(error).__name__}"
    seen.ends[end] += 1


async def _err(client: httpx.AsyncClient, body: bytes) -> str:
    answer = await client.post("/completions", content=body)
    told = answer.status_code in _REFUSED and answer.json()["error"]["message"]
    return "refused as wrong" if told else f"wrongly answered with {answer.status_code}"


async def _read(
    client: httpx.AsyncClient, seen: Seen, question: Question, kind: str, random: Random
) -> str:
    """Read a stream to its end, or for a while."""
    leaves_after = random.randrange(30) if kind == "leaves" else None
    text, latest = "", time.perf_counter()
    async with client.stream(
        "POST", "/completions", json={**question.body, "stream": True}
    ) as answer:
        if answer.status_code == _BUSY:
            return "refused as busy"
        async for choice in _choices(answer):
            now = time.perf_counter()
            (seen.between_s if text else seen.first_s).append(now - latest)
            latest, text = now, text + choice["text"]
            if leaves_after is not None and len(text) > leaves_after:
                return "left"
            if kind == "slow":
                await asyncio.sleep(0.2 * random.random())
                latest = time.perf_counter()
    return "answered" if text == question.text else "answered wrongly"


async def _choices(answer: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in answer.aiter_lines():
        if line.startswith("data: {"):
            told = json.loads(line.removeprefix("data: "))
            if "error" in told:
                raise httpx.RemoteProtocolError(told["error"]["message"])
            yield told["choices"][0]
