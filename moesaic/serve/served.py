"""`Served`: a model under a name, and the shards beside it."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from http import HTTPStatus
from time import time
from typing import Any

from moesaic.config.serve import ServeConfig
from moesaic.data.chat import ChatTemplate
from moesaic.data.tokenizer import Tokenizer
from moesaic.infer.batching import BatchEngine
from moesaic.infer.grammar import Grammars
from moesaic.infer.job import Job
from moesaic.infer.variant import Variant
from moesaic.serve.embedding import EmbeddingForm
from moesaic.serve.errors import RefusedError
from moesaic.serve.forms import ChatForm, CompletionForm
from moesaic.serve.shards import Loaded, Shards
from moesaic.serve.structured import in_form


@dataclass(frozen=True)
class Served:
    """A model under a name."""

    name: str
    """What clients call it."""
    engine: BatchEngine
    tokenizer: Tokenizer
    positions: int
    """How many tokens it can see."""
    shards: Shards | None = None
    """What is served beside it as ``NAME+SHARD``; None where there is no room for any."""
    since: int = field(default_factory=lambda: int(time()))
    """Seconds since 1970."""

    @property
    def config(self) -> ServeConfig:
        """What is let in."""
        return self.engine.config

    @cached_property
    def template(self) -> ChatTemplate:
        """How conversations are written.

        Raises:
            DataError: if neither the settings nor the tokenizer have a chat template.
        """
        return ChatTemplate.of(self.tokenizer, self.config.chat_template)

    @cached_property
    def grammars(self) -> Grammars:
        """What answers may be made to follow.

        Raises:
            RequestError: if the tokenizer is not one of bytes.
        """
        return Grammars(self.engine.model, self.tokenizer)

    @property
    def names(self) -> list[str]:
        """All that clients may ask for."""
        shards = () if self.shards is None else self.shards.names
        return [self.name, *(f"{self.name}+{shard}" for shard in shards)]

    def cards(self) -> list[dict[str, Any]]:
        """What is told of each model."""
        shards = () if self.shards is None else self.shards.list()
        return [self.card(), *map(self.card, shards)]

    def card(self, shard: Loaded | None = None) -> dict[str, Any]:
        """What is told of the base, or of a shard."""
        told = {"id": self.name, "object": "model", "created": self.since, "owned_by": "moesaic"}
        if shard is None:
            return told
        return {
            **told,
            "id": f"{self.name}+{shard.name}",
            "created": shard.since,
            "parent": self.name,
            "digest": shard.shard.manifest.digest,
        }

    def shard_of(self, name: str) -> Loaded | None:
        """The shard that a model's name names; None for the base.

        Raises:
            RefusedError: if there is no such model.
        """
        base, plus, shard = name.rpartition("+")
        found = self.shards.find(shard) if self.shards and plus and base == self.name else None
        if found is None and name != self.name:
            raise RefusedError(
                HTTPStatus.NOT_FOUND,
                f"there is no model {name!r} here; ask for {' or '.join(map(repr, self.names))}",
                code="model_not_found",
            )
        return found

    def chat_jobs(self, form: ChatForm, variant: Variant | None) -> list[Job]:
        """What a conversation asks of the engine."""
        jobs = form.jobs(self.template, self.config, self.positions)
        jobs = in_form(jobs, form, lambda: self.grammars)
        return [replace(job, variant=variant) for job in jobs]

    def completion_jobs(self, form: CompletionForm, variant: Variant | None) -> list[Job]:
        """What a prompt asks of the engine."""
        jobs = in_form(form.jobs(self.tokenizer, self.config), form, lambda: self.grammars)
        return [replace(job, variant=variant) for job in jobs]

    def embedding_jobs(self, form: EmbeddingForm) -> list[Job]:
        """What texts to be embedded ask of the engine."""
        shard = self.shard_of(form.model)
        jobs = form.jobs(self.tokenizer, self.engine)
        return [replace(job, variant=None if shard is None else shard.variant) for job in jobs]
