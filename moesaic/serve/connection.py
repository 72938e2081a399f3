"""`Connection`: what a client is answered over, given up where the client lets it hang."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from starlette.types import ASGIApp, Receive, Scope, Send

from moesaic.config.serve import ServeConfig

_NAME = "connection"
"""Under which the connection of a request is in its scope's state."""


class Connection(asyncio.Protocol):
    """Passes everything on to the protocol that speaks HTTP, and watches the clock.

    A client has a time for each request to begin, and has to take something of its answer within
    another; else the connection is ended at once, whatever of the answer was not sent. The request
    ends as it does where a client leaves.
    """

    def __init__(self, inner: asyncio.Protocol, config: ServeConfig) -> None:
        self._inner, self._config = inner, config
        self._answers = self._unread_bytes = 0
        self._unread: asyncio.TimerHandle | None = None
        self._awaited: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin: a request has to come."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=0)  # pause when the system takes no more
        self._await_request()
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        for timer in (self._unread, self._awaited):
            if timer is not None:
                timer.cancel()
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass on."""
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """Pass on."""
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        """Something waits for the client to take it."""
        self._inner.pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """Everything was taken."""
        if self._unread is not None:
            self._unread.cancel()
        self._inner.resume_writing()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """A request is here; the next one has to begin after its answer, or before."""
        self._answers += 1
        if self._awaited is not None:
            self._awaited.cancel()
        try:
            yield
        finally:
            self._answers -= 1
            if not (self._answers or self._transport.is_closing()):
                self._await_request()

    def _await_request(self) -> None:
        loop = asyncio.get_running_loop()
        self._awaited = loop.call_later(self._config.arrival_s, self._give_up_idle)

    def _give_up_idle(self) -> None:
        """End a connection on which nothing begins, unless the latest answer is still taken."""
        if self._transport.get_write_buffer_size():
            self._await_request()
        else:
            self._transport.abort()

    def _watch(self) -> None:
        self._unread_bytes = self._transport.get_write_buffer_size()
        loop = asyncio.get_running_loop()
        self._unread = loop.call_later(self._config.unread_s, self._look)

    def _look(self) -> None:
        """Give up a client that took nothing since the last look."""
        if self._transport.get_write_buffer_size() < self._unread_bytes:
            self._watch()
        else:
            self._transport.abort()


def watched(protocol: Callable[..., asyncio.Protocol], config: ServeConfig) -> Any:
    """A protocol of HTTP for uvicorn, each of whose connections is watched."""

    def connect(**given: Any) -> Connection:
        state: dict[str, Any] = {}
        connection = Connection(protocol(**{**given, "app_state": state}), config)
        state[_NAME] = connection
        return connection

    return connect


def telling_of_requests(app: ASGIApp) -> ASGIApp:
    """An app that tells the connection of each request when it begins and ends."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        with scope["state"][_NAME].answering():
            await app(scope, receive, send)

    return answer
