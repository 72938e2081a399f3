"""``/v1/embeddings``: the mean of a text's normed hidden states, of length 1."""

import asyncio
from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.params import Depends
from fastapi.responses import JSONResponse
from pydantic import PositiveInt
from torch import Tensor

from moesaic.config.infer import GenerateConfig
from moesaic.config.settings import Settings
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import RequestError
from moesaic.infer.batching import BatchEngine
from moesaic.infer.job import Job, Piece
from moesaic.serve.answering import unless_gone
from moesaic.serve.asking import Asked
from moesaic.serve.errors import RefusedError
from moesaic.serve.reading import read_json

_MOST_TEXTS = 2048
"""Texts of a request, as in the API."""


class EmbeddingForm(Settings):
    """What a client may ask."""

    model: str
    """The name of the model."""
    input: str | list[str] | list[int] | list[list[int]]
    """A text or its ids, or several."""
    encoding_format: Literal["float", "base64"] | None = None
    """Numbers as JSON, or as the bytes of float32 in base64; None is JSON."""
    dimensions: PositiveInt | None = None
    """How many numbers; only all of them are served."""
    user: str | None = None
    """Who asks; nothing depends on it."""

    def jobs(self, tokenizer: Tokenizer, engine: BatchEngine) -> list[Job]:
        """What the engine is asked, for each text.

        Raises:
            RequestError: if there are too many texts, one is too long, or they should be shorter.
        """
        n_hidden, positions = engine.model.hidden_size, engine.model.max_position_embeddings
        if self.dimensions not in (None, n_hidden):
            raise RequestError(
                f"dimensions={self.dimensions} is not served: the numbers of this model mean "
                f"something only together; leave it out, for {n_hidden}"
            )
        rows = [
            tokenizer.encode_prompt(text) if isinstance(text, str) else text
            for text in self._texts()
        ]
        if not 0 < len(rows) <= _MOST_TEXTS:
            raise RequestError(f"input has {len(rows)} texts; give 1 to {_MOST_TEXTS}")
        for place, row in enumerate(rows):
            if not 0 < len(row) < positions:
                raise RequestError(
                    f"input {place} has {len(row)} tokens; this model embeds 1 to {positions - 1}"
                )
        once = GenerateConfig(max_new_tokens=1)
        return [Job(tuple(row), once, embeds=True) for row in rows]

    def _texts(self) -> Sequence[str | list[int]]:
        if isinstance(self.input, str):
            return [self.input]
        ids = [each for each in self.input if isinstance(each, int)]
        return [ids] if ids else [each for each in self.input if not isinstance(each, int)]

    def written(self, embedding_D: Tensor) -> list[float] | str:
        """An embedding as it is asked for."""
        if self.encoding_format == "base64":
            return b64encode(embedding_D.numpy().astype("<f4").tobytes()).decode()
        return embedding_D.tolist()


def add_embeddings(
    app: FastAPI,
    engine: BatchEngine,
    make: Callable[[EmbeddingForm], list[Job]],
    guards: Sequence[Depends],
) -> None:
    """Answer ``/v1/embeddings``.

    Args:
        app: the server.
        engine: what reads the texts.
        make: the jobs of a request.
        guards: what a request has to pass.
    """

    @app.post("/v1/embeddings", dependencies=guards)
    async def embeddings(request: Request) -> Response:
        try:
            form = EmbeddingForm.parse(await read_json(request, engine.config))
            jobs = await asyncio.to_thread(make, form)
            return await unless_gone(request, _embed(engine, form, jobs))
        except Exception as error:  # every error has an answer
            raise RefusedError.of(error) from error


async def _embed(engine: BatchEngine, form: EmbeddingForm, jobs: Sequence[Job]) -> Response:
    """The embeddings of all texts, as many at a time as a request may have choices."""
    pieces: list[Piece] = []
    for start in range(0, len(jobs), engine.config.max_choices):
        asked = Asked(engine, jobs[start : start + engine.config.max_choices])
        pieces += [piece for [piece] in await asked.collect()]
    return JSONResponse(_told(form, jobs, pieces))


def _told(form: EmbeddingForm, jobs: Sequence[Job], pieces: Sequence[Piece]) -> dict[str, Any]:
    data = [
        {"object": "embedding", "index": index, "embedding": form.written(piece.embedding_D)}
        for index, piece in enumerate(pieces)
        if piece.embedding_D is not None
    ]
    n_tokens = sum(len(job.prompt_ids) for job in jobs)
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return {"object": "list", "data": data, "model": form.model, "usage": usage}
