"""What goes out: an answer at once, or events; nobody is answered who has gone."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from moesaic.serve.answers import Answer, usage_of
from moesaic.serve.asking import Asked
from moesaic.serve.errors import RefusedError

_GONE = 499
"""Status, for logs only, of a request whose client did not wait."""


class Events(StreamingResponse):
    """Server-sent events; what was asked for is cancelled when they end, however they end."""

    def __init__(self, asked: Asked, answer: Answer, n: int, tells_usage: bool) -> None:
        events = _events(asked, answer, n, tells_usage)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._asked = asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._asked.cancel()


async def answer_at_once(request: Request, asked: Asked, answer: Answer, n: int) -> Response:
    """The whole answer, or nothing if the client does not wait for it."""

    async def collect() -> Response:
        choices = await asked.collect()
        drawn = sum(not piece.of_prompt for pieces in choices for piece in pieces)
        usage = usage_of(asked.jobs, asked.streams, n, drawn)
        return JSONResponse(answer.whole(choices, usage))

    try:
        return await unless_gone(request, collect())
    finally:
        asked.cancel()


async def unless_gone(request: Request, answer: Coroutine[Any, Any, Response]) -> Response:
    """An answer, which is given up when its client does not wait for it."""
    work = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else Response(status_code=_GONE)
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _events(asked: Asked, answer: Answer, n: int, tells_usage: bool) -> AsyncIterator[str]:
    drawn = 0
    try:
        for opening in answer.opening(len(asked.jobs)):
            yield _event(opening)
        async for index, piece in asked.pieces():
            drawn += not piece.of_prompt
            if piece.text or piece.ending or answer.has_logprobs:
                yield _event(answer.event(index, piece))
        if tells_usage:
            yield _event(answer.closing(usage_of(asked.jobs, asked.streams, n, drawn)))
    except Exception as error:  # the status was sent before
        yield _event(RefusedError.of(error).to_json())
    yield "data: [DONE]\n\n"


def _event(told: dict[str, Any]) -> str:
    return f"data: {json.dumps(told, ensure_ascii=False)}\n\n"


async def _disconnected(request: Request) -> None:
    """Return when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
