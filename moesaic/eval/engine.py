"""`Engine`: a model that answers requests, in batches that do not change an answer."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch

from moesaic.checkpoint.digest import digest
from moesaic.config.eval import TOKENS_AT_ONCE, EvalConfig
from moesaic.config.model import ModelConfig
from moesaic.config.published import read_config
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import ConfigError
from moesaic.esft.park import load_frozen
from moesaic.eval.batches import plan_batches
from moesaic.eval.encode import Asked, Encoder
from moesaic.eval.requests import (
    Answer,
    Generation,
    Likelihood,
    LikelihoodAnswer,
    Request,
    Rolling,
    RollingAnswer,
)
from moesaic.eval.results import Source
from moesaic.eval.rows import Rows, Told
from moesaic.eval.score import Found, score_batch
from moesaic.eval.write import Writer
from moesaic.model.transformer import Transformer
from moesaic.train.setup import choose_device

_WINDOW = 2048
"""Requests that are sorted and batched together: more would hardly fill batches better, and all
their prompts are in memory."""


class Engine:
    """A model and its tokenizer, to be asked.

    Args:
        model: asked.
        tokenizer: of the model's vocabulary.
        config: how prompts are cut and how much is fed at once. What it says of data and of loading
            is not read here.
        source: where the model comes from; None finds the digest of its weights when it is needed.

    Raises:
        ConfigError: if ``max_length`` is more than the model can see, or its vocabulary smaller
            than the tokenizer's.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        config: EvalConfig | None = None,
        source: Source | None = None,
    ) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, config or EvalConfig()
        self._source = source
        self._encoder = Encoder(tokenizer, _max_length(model.config, self.config))
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ConfigError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, more than "
                f"vocab_size={model.config.vocab_size}; use the one that belongs to the model"
            )
        self.device = model.head_weight.device.type
        default = TOKENS_AT_ONCE["cuda" if self.device == "cuda" else "cpu"]
        self._batch_tokens = self.config.batch_tokens or default
        self._writer = Writer(model, self._encoder, self.config, self._batch_tokens)

    @classmethod
    def load(cls, folder: Path | str, config: EvalConfig | None = None) -> Self:
        """The model and the tokenizer of a checkpoint folder.

        Raises:
            CheckpointError: if the folder is incomplete, damaged, or does not fit its config.json.
            DataError: if it has no tokenizer.
            ConfigError: if the device is missing.
        """
        checkpoint = Checkpoint(folder, config or EvalConfig())
        return cls(checkpoint.load(), checkpoint.tokenizer, checkpoint.config, checkpoint.source)

    @cached_property
    def source(self) -> Source:
        """Where the model comes from."""
        return self._source or Source(None, _digest_of(self.model))

    @property
    def by(self) -> dict[str, Any]:
        """Who answers: everything of the model and of the settings that could change an answer."""
        dtype = self.model.compute_dtype or self.model.head_weight.dtype
        name = str(dtype).removeprefix("torch.")
        return answerer(self.source, self.tokenizer, self.model.config, self.config, name)

    def answer(
        self, requests: Sequence[Request], known: Collection[int] = ()
    ) -> Iterator[tuple[int, Answer]]:
        """Answers with the places of their requests, in whatever order is fastest.

        Args:
            requests: what is asked.
            known: places of requests that need no answer. Batches are the same with and without
                them, so that an interrupted evaluation ends with the same numbers, bit for bit.

        Raises:
            RequestError: if a request does not fit the model, or the model gives no numbers.
        """
        for start in range(0, len(requests), _WINDOW):
            window = range(start, min(start + _WINDOW, len(requests)))
            if all(place in known for place in window):
                continue
            scored: dict[int, Likelihood | Rolling] = {}
            written: dict[int, Generation] = {}
            for place in window:
                request = requests[place]
                if isinstance(request, Generation):
                    written[place] = request
                else:
                    scored[place] = request
            yield from self._score(scored, known)
            yield from self._writer.answers(written, known)

    def _score(
        self, requests: Mapping[int, Likelihood | Rolling], known: Collection[int]
    ) -> Iterator[tuple[int, Answer]]:
        """Answers to likelihoods and to rolling ones."""
        rows = Rows()
        for place, asked in self._encode(requests).items():
            rows.add(place, asked)
        missing = {place: rows.rows_of(place) for place in requests if place not in known}
        yield from ((place, RollingAnswer(0.0, 0)) for place, none in missing.items() if not none)
        queries, found = rows.queries(), dict[int, Found]()
        for batch in plan_batches(rows.ids, rows.free, self._batch_tokens):
            users = {place for row in batch.rows for place in rows.users[row] if place in missing}
            if not users:
                continue
            results = score_batch(self.model, queries, batch)
            found.update(zip(batch.rows, results, strict=True))
            for place in sorted(users):
                missing[place] -= found.keys()
                if not missing[place]:
                    told = rows.told(place, found)
                    yield place, _answer(requests[place], told)

    def _encode(self, requests: Mapping[int, Likelihood | Rolling]) -> dict[int, list[Asked]]:
        """What to feed for each request."""
        single = {i: one for i, one in requests.items() if isinstance(one, Likelihood)}
        encoded = self._encoder.likelihoods(list(single.values()))
        asked = {place: [one] for place, one in zip(single, encoded, strict=True)}
        for place, request in requests.items():
            if isinstance(request, Rolling):
                asked[place] = self._encoder.windows(request.text)
        return asked


def _answer(request: Likelihood | Rolling, told: Told) -> Answer:
    if isinstance(request, Likelihood):
        return LikelihoodAnswer(told.log_probability, told.is_greedy, told.tokens)
    return RollingAnswer(told.log_probability, told.tokens)


class Checkpoint:
    """A checkpoint folder to be asked; its weights are read with the first request.

    Args:
        folder: with a tokenizer.
        config: see `Engine`, and how to load the model.

    Raises:
        CheckpointError: if the folder is incomplete or damaged.
        DataError: if it has no tokenizer.
        ConfigError: if the device is missing, or ``max_length`` more than the model can see.
    """

    def __init__(self, folder: Path | str, config: EvalConfig) -> None:
        self.config, self._folder = config, folder
        self.device = choose_device(config.device)
        model, self.tokenizer = read_config(Path(folder)), Tokenizer.load(folder)
        self.source = Source(str(folder), digest(folder))
        self.by = answerer(self.source, self.tokenizer, model, config, config.dtype)
        """Who answers."""

    def answer(
        self, requests: Sequence[Request], known: Collection[int] = ()
    ) -> Iterator[tuple[int, Answer]]:
        """See `Engine.answer`."""
        if len(known) < len(requests):
            yield from self._engine.answer(requests, known)

    def load(self) -> Transformer:
        """The model.

        Raises:
            CheckpointError: if a file is damaged, or does not fit config.json.
        """
        return load_frozen(self._folder, self.config.dtype, self.device, self.config.hold)

    @cached_property
    def _engine(self) -> Engine:
        return Engine(self.load(), self.tokenizer, self.config, self.source)


def answerer(
    source: Source, tokenizer: Tokenizer, model: ModelConfig, config: EvalConfig, dtype: str
) -> dict[str, Any]:
    """Everything of a model and of settings that could change an answer."""
    return {
        "model": source.digest,
        "tokenizer": tokenizer.digest,
        "dtype": dtype,
        "max_length": _max_length(model, config),
        **config.model_dump(include={"hold", "max_new_tokens", "chat", "seed"}),
    }


def _max_length(model: ModelConfig, config: EvalConfig) -> int:
    """Tokens the model is fed at most."""
    most = model.max_position_embeddings
    if config.max_length is not None and config.max_length > most:
        raise ConfigError(
            f"max_length={config.max_length} is more than the model's "
            f"max_position_embeddings={most}; lower max_length, or leave it out"
        )
    return config.max_length or most


def _digest_of(model: Transformer) -> str:
    """SHA-256 of a model's configuration and tensors."""
    value = hashlib.sha256(model.config.model_dump_json().encode())
    for name, tensor in sorted(model.state_dict().items()):
        value.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        value.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return value.hexdigest()
