"""The paths of the server, as a FastAPI app over a `BatchEngine`."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from time import time
from typing import Any, TypeVar

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from moesaic.config.serve import ServeConfig
from moesaic.data.chat import ChatTemplate
from moesaic.data.tokenizer import Tokenizer
from moesaic.infer.batching import BatchEngine
from moesaic.infer.grammar import Grammars
from moesaic.infer.job import Job
from moesaic.serve.answering import Events, answer_at_once
from moesaic.serve.answers import Answer
from moesaic.serve.asking import Asked
from moesaic.serve.errors import RefusedError
from moesaic.serve.forms import ChatForm, CompletionForm, Form
from moesaic.serve.metrics import KIND, exposition
from moesaic.serve.page import add_page
from moesaic.serve.reading import check_key, read_json
from moesaic.serve.structured import in_form

_Form = TypeVar("_Form", bound=Form)


@dataclass(frozen=True)
class Served:
    """A model under a name."""

    name: str
    """What clients call it."""
    engine: BatchEngine
    tokenizer: Tokenizer
    positions: int
    """How many tokens it can see."""

    @property
    def config(self) -> ServeConfig:
        """What is let in."""
        return self.engine.config

    @cached_property
    def template(self) -> ChatTemplate:
        """How conversations are written.

        Raises:
            DataError: if the tokenizer has no chat template.
        """
        return ChatTemplate.of(self.tokenizer)

    @cached_property
    def grammars(self) -> Grammars:
        """What answers may be made to follow.

        Raises:
            RequestError: if the tokenizer is not one of bytes.
        """
        return Grammars(self.engine.model, self.tokenizer)

    def chat_jobs(self, form: ChatForm) -> list[Job]:
        """What a conversation asks of the engine."""
        jobs = form.jobs(self.template, self.config, self.positions)
        return in_form(jobs, form, lambda: self.grammars)

    def completion_jobs(self, form: CompletionForm) -> list[Job]:
        """What a prompt asks of the engine."""
        return in_form(form.jobs(self.tokenizer, self.config), form, lambda: self.grammars)


def make_app(served: Served) -> FastAPI:
    """The server's paths: ``/v1/…`` as in the OpenAI API, ``/health`` and ``/metrics``."""

    async def with_key(request: Request) -> None:
        check_key(request, served.config)

    app = FastAPI(title="moesaic", docs_url=None, redoc_url=None, openapi_url=None)
    guarded = [Depends(with_key)]
    since = int(time())

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", dependencies=guarded)
    async def metrics() -> Response:
        return PlainTextResponse(exposition(served.engine.stats()), media_type=KIND)

    @app.get("/v1/models", dependencies=guarded)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(served, since)]}

    @app.get("/v1/models/{name:path}", dependencies=guarded)
    async def model(name: str) -> dict[str, Any]:
        _check_name(served, name)
        return _model(served, since)

    @app.post("/v1/chat/completions", dependencies=guarded)
    async def chat(request: Request) -> Response:
        return await _answer(served, request, ChatForm, served.chat_jobs)

    @app.post("/v1/completions", dependencies=guarded)
    async def complete(request: Request) -> Response:
        return await _answer(served, request, CompletionForm, served.completion_jobs)

    add_page(app)
    for kind in (Exception, HTTPException, RefusedError):
        app.add_exception_handler(kind, _refuse)
    return app


async def _answer(
    served: Served, request: Request, kind: type[_Form], make: Callable[[_Form], list[Job]]
) -> Response:
    """Read a request, ask the engine, and answer as the client wants it."""
    try:
        form = kind.read(await read_json(request, served.config))
        _check_name(served, form.model)
        jobs = await asyncio.to_thread(make, form)
        asked = Asked(served.engine, jobs)
        has_logprobs = jobs[0].top_logprobs is not None
        answer = Answer(served.name, served.tokenizer, kind is ChatForm, has_logprobs)
        if form.stream:
            return Events(asked, answer, form.n or 1, form.tells_usage)
        return await answer_at_once(request, asked, answer, form.n or 1)
    except Exception as error:  # every error has an answer
        raise RefusedError.of(error) from error


def _model(served: Served, since: int) -> dict[str, Any]:
    return {"id": served.name, "object": "model", "created": since, "owned_by": "moesaic"}


def _check_name(served: Served, name: str) -> None:
    if name != served.name:
        raise RefusedError(
            HTTPStatus.NOT_FOUND,
            f"there is no model {name!r} here; ask for {served.name!r}",
            code="model_not_found",
        )


async def _refuse(request: Request, error: Exception) -> Response:
    """The answer to a request that has none."""
    if isinstance(error, HTTPException):
        status = HTTPStatus(error.status_code)
        error = RefusedError(status, f"{request.method} {request.url.path}: {status.phrase}")
    refusal = RefusedError.of(error)
    busy = refusal.status == HTTPStatus.SERVICE_UNAVAILABLE
    headers = {"Retry-After": "1"} if busy else {}
    return JSONResponse(refusal.to_json(), refusal.status, headers)
