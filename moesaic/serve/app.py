"""The paths of the server, as a FastAPI app over a `BatchEngine`."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from moesaic.errors import MoesaicError
from moesaic.infer.job import Job
from moesaic.infer.variant import Variant
from moesaic.serve.admin import add_shard_paths
from moesaic.serve.answering import Events, answer_at_once
from moesaic.serve.answers import Answer
from moesaic.serve.asking import Asked
from moesaic.serve.embedding import add_embeddings
from moesaic.serve.errors import RefusedError
from moesaic.serve.forms import ChatForm, CompletionForm, Form
from moesaic.serve.metrics import KIND, exposition
from moesaic.serve.page import add_page
from moesaic.serve.reading import check_key, read_json
from moesaic.serve.served import Served

_Form = TypeVar("_Form", bound=Form)
_Make = Callable[[_Form, Variant | None], list[Job]]


def make_app(served: Served) -> FastAPI:
    """The server's paths: ``/v1/…`` as in the OpenAI API, ``/health`` and ``/metrics``."""

    async def with_key(request: Request) -> None:
        check_key(request, served.config)

    app = FastAPI(title="moesaic", docs_url=None, redoc_url=None, openapi_url=None)
    guarded = [Depends(with_key)]

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", dependencies=guarded)
    async def metrics() -> Response:
        return PlainTextResponse(exposition(served.engine.stats()), media_type=KIND)

    @app.get("/v1/models", dependencies=guarded)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": served.cards()}

    @app.get("/v1/models/{name:path}", dependencies=guarded)
    async def model(name: str) -> dict[str, Any]:
        return served.card(served.shard_of(name))

    @app.post("/v1/chat/completions", dependencies=guarded)
    async def chat(request: Request) -> Response:
        return await _answer(served, request, ChatForm, served.chat_jobs)

    @app.post("/v1/completions", dependencies=guarded)
    async def complete(request: Request) -> Response:
        return await _answer(served, request, CompletionForm, served.completion_jobs)

    add_embeddings(app, served.engine, served.embedding_jobs, guarded)
    add_page(app)
    add_shard_paths(app, served)
    for kind in (Exception, HTTPException, MoesaicError):
        app.add_exception_handler(kind, _refuse)
    return app


async def _answer(
    served: Served, request: Request, kind: type[_Form], make: _Make[_Form]
) -> Response:
    """Read a request, ask the engine, and answer as the client wants it."""
    try:
        form = kind.read(await read_json(request, served.config))
        shard = served.shard_of(form.model)
        jobs = await asyncio.to_thread(make, form, None if shard is None else shard.variant)
        asked = Asked(served.engine, jobs)
        has_logprobs = jobs[0].top_logprobs is not None
        answer = Answer(form.model, served.tokenizer, kind is ChatForm, has_logprobs)
        if form.stream:
            return Events(asked, answer, form.n or 1, form.tells_usage)
        return await answer_at_once(request, asked, answer, form.n or 1)
    except Exception as error:  # every error has an answer
        raise RefusedError.of(error) from error


async def _refuse(request: Request, error: Exception) -> Response:
    """The answer to a request that has none."""
    if isinstance(error, HTTPException):
        status = HTTPStatus(error.status_code)
        error = RefusedError(status, f"{request.method} {request.url.path}: {status.phrase}")
    refusal = RefusedError.of(error)
    busy = refusal.status == HTTPStatus.SERVICE_UNAVAILABLE
    headers = {"Retry-After": "1"} if busy else {}
    return JSONResponse(refusal.to_json(), refusal.status, headers)
