"""The same page while runs are going: served to this machine alone, its sections renewed in place.

Reads and never writes. Every answer is made from the files as they are then.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from time import monotonic

from moesaic.errors import MoesaicError, RequestError
from moesaic.report.page import Page, make_page, render
from moesaic.report.read import read_sources

HOST = "127.0.0.1"
_NAMES = frozenset({HOST, "localhost"})
"""What a browser on this machine calls it: a page of another name may not read this one."""
_AGE_S = 1.0


@dataclass(slots=True)
class Watched:
    """What is looked at, read anew when it is asked for."""

    paths: Sequence[Path]
    title: str
    age_s: float = _AGE_S
    """Seconds that an answer is given again."""
    _made: tuple[float, Page] | None = None
    _lock: Lock = field(default_factory=Lock)

    def page(self) -> Page:
        """The page as of now, or of a moment ago.

        Raises:
            MoesaicError: if there is nothing to show, or no longer.
        """
        with self._lock:
            if self._made is None or monotonic() - self._made[0] > self.age_s:
                self._made = monotonic(), make_page(read_sources(self.paths), self.title)
            return self._made[1]


class _Handler(BaseHTTPRequestHandler):
    """Answers for the page and its content, and for nothing else."""

    server_version = "moesaic"
    sys_version = ""

    def do_GET(self) -> None:
        """The page, or what it shows, as JSON."""
        if self._named() not in _NAMES:
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", "ask for http://127.0.0.1")
        elif self.path == "/":
            self._made(self._server.html, "text/html")
        elif self.path == "/content.json":
            self._made(self._server.content, "application/json")
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", "there is / and /content.json")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: who opened the page knows it."""

    @property
    def _server(self) -> "Server":
        assert isinstance(self.server, Server)
        return self.server

    def _named(self) -> str:
        return (self.headers.get("Host") or "").rpartition(":")[0]

    def _made(self, make: Callable[[], str], kind: str) -> None:
        try:
            self._answer(HTTPStatus.OK, kind, make())
        except MoesaicError as error:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", str(error))

    def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """Serves one page to this machine."""

    daemon_threads = True

    def __init__(self, watched: Watched, port: int, every_s: float = 3.0) -> None:
        """Listen.

        Args:
            watched: what is shown.
            port: where; 0 takes a free one.
            every_s: seconds between the page's questions for news.

        Raises:
            RequestError: if the port is taken.
        """
        self._watched, self._every_s = watched, every_s
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RequestError(
                f"port {port} cannot be used ({reason}); give another with --port, or 0 "
                "for a free one"
            ) from None

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        return f"http://{HOST}:{self.server_port}/"

    def html(self) -> str:
        """The page."""
        return render(self._watched.page(), datetime.now(), live_s=self._every_s)

    def content(self) -> str:
        """What the page shows, to be put in its place."""
        return json.dumps(self._watched.page().to_json(), allow_nan=False)
