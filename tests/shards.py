"""A base with a tokenizer, shards of it, and the checkpoints that merging them makes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moesaic.checkpoint.digest import digest
from moesaic.checkpoint.save import save
from moesaic.config.infer import GenerateConfig
from moesaic.config.model import ModelConfig
from moesaic.config.serve import ServeConfig
from moesaic.data.tokenizer import Tokenizer
from moesaic.esft.manifest import Sign, Work
from moesaic.esft.merge import merge_shards
from moesaic.esft.park import load_slice
from moesaic.esft.select import Selection
from moesaic.esft.shard import write_shard
from moesaic.infer.job import Job, Piece, Stream
from moesaic.model.build import build_model
from moesaic.serve.load import load_served
from moesaic.serve.served import Served

EXPERTS = {1: (1, 2, 5), 2: (0, 3, 7)}
OTHERS = {1: (2, 3, 4), 2: (0, 1, 2)}


@dataclass(frozen=True)
class Home:
    """A folder with ``base`` and its shards."""

    folder: Path
    tokenizer: Tokenizer

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @classmethod
    def make(
        cls, folder: Path, config: ModelConfig, tokenizer: Tokenizer, dtype: str = "bfloat16"
    ) -> "Home":
        save(folder / "base", config, build_model(config, seed=5).state_dict(), dtype)
        tokenizer.save(folder / "base")
        return cls(folder, tokenizer)

    def shard(
        self,
        name: str,
        experts: Mapping[int, tuple[int, ...]] = EXPERTS,
        seed: int = 0,
        tokens: int = 100,
        sign: Sign | None = None,
        **trained: Any,
    ) -> Path:
        """A shard whose weights are the base's with noise."""
        selection = Selection(experts=dict(experts), **trained)
        model, generator = load_slice(self.base, selection), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter += 0.2 * noise.to(parameter.dtype)
        work = Work(base=digest(self.base), run={}, data=(name,), tokens=tokens, steps=1)
        write_shard(self.folder / name, model, selection, work, "bfloat16", sign)
        return self.folder / name

    def merged(self, *shards: Path) -> Path:
        """The checkpoint that they make of the base."""
        out = self.folder / "-".join(["merged", *(shard.name for shard in shards)])
        merge_shards(self.base, shards, out)
        self.tokenizer.save(out)
        return out

    def served(self, folder: Path | None = None, **settings: Any) -> Served:
        """What a server serves of the base, or of another folder."""
        shards = settings.pop("shards", None)
        given = {"dtype": "float32", "device": "cpu", "cache_tokens": 2048, "deterministic": True}
        return load_served(
            folder or self.base, ServeConfig.parse({**given, "closing_s": 2.0, **settings}), shards
        )


def told(pieces: list[Piece]) -> list[tuple[int, float | None]]:
    """What must be the same to the last bit."""
    return [(piece.token, piece.logprob) for piece in pieces]


MakeHome = Callable[..., Home]


def ask(served: Served, model: str, ids: list[int], **settings: Any) -> Stream:
    """Ask a model, as the server does for a request that names it."""
    shard = served.shard_of(model)
    variant = None if shard is None else shard.variant
    chosen = GenerateConfig.parse({"max_new_tokens": 8, "temperature": 0, **settings})
    return served.engine.submit(Job(tuple(ids), chosen, top_logprobs=0, variant=variant))


def answers(served: Served, model: str, rows: list[list[int]], **settings: Any) -> list[Any]:
    """All at once."""
    asked = [ask(served, model, row, **settings) for row in rows]
    return [told(list(stream)) for stream in asked]


def answers_of(home: Home, folder: Path, rows: list[list[int]], **settings: Any) -> list[Any]:
    """Of a checkpoint served by itself."""
    alone = home.served(folder, **settings)
    with alone.engine:
        return answers(alone, alone.name, rows)
