"""The chat page: one file that asks nothing of any other server."""

from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files

from fastapi import FastAPI, Response
from fastapi.responses import HTMLResponse

_ASSETS = files("moesaic.serve") / "assets"
_SCRIPTS = ("markdown.js", "page.js")


def add_page(app: FastAPI) -> None:
    """Answer ``/`` with the page. It needs no key; what it asks of the server does."""

    @app.get("/")
    async def page() -> Response:
        return HTMLResponse(page_html(), headers=page_headers())


@cache
def page_html() -> str:
    """The page with its style and its scripts."""
    html = _asset("page.html").replace("{{ style }}", _style())
    return html.replace("{{ script }}", _script())


@cache
def page_headers() -> dict[str, str]:
    """What a browser is told of the page: only its own style and script count, and only this server
    is asked."""
    rules = (
        "default-src 'none'",
        f"script-src '{_digest(_script())}'",
        f"style-src '{_digest(_style())}'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    return {
        "Content-Security-Policy": "; ".join(rules),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def _style() -> str:
    return _asset("page.css")


def _script() -> str:
    return "\n".join(['"use strict";', *map(_asset, _SCRIPTS)])


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
