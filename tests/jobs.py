"""Jobs for a running batch, and decoders that are slow or fail."""

from collections.abc import Callable, Sequence
from random import Random
from time import monotonic, sleep

import torch

from moesaic.config.infer import GenerateConfig
from moesaic.config.serve import ServeConfig
from moesaic.data.tokenizer import Tokenizer
from moesaic.infer.batching import BatchEngine
from moesaic.infer.blocks import BlockPool
from moesaic.infer.decoder import Fed, Found, TorchDecoder
from moesaic.infer.job import Job, Stream
from moesaic.infer.sequence import Sequence as Running
from moesaic.infer.text import Written
from moesaic.model.transformer import Transformer

BLOCK = 4


class Slow(TorchDecoder):
    """Waits until it is let go, then takes its time; remembers what it was fed."""

    gap_s = 0.0

    def feed(self, fed: Sequence[Fed]) -> list[Found]:
        self.sizes = [*getattr(self, "sizes", []), [len(one.ids) for one in fed]]
        sleep(self.gap_s)
        return super().feed(fed)


class Failing(TorchDecoder):
    """Cannot be fed one token."""

    def feed(self, fed: Sequence[Fed]) -> list[Found]:
        if any(13 in one.ids for one in fed):
            raise ValueError("out of luck")
        return super().feed(fed)


class Garbling(TorchDecoder):
    """Now and then gives less than it was asked for, which nobody expects."""

    def feed(self, fed: Sequence[Fed]) -> list[Found]:
        found = super().feed(fed)
        self.passes = getattr(self, "passes", 0) + 1
        return (
            found
            if self.passes % 9
            else [Found(each.logits_TV[:, :0], each.hidden_TD) for each in found]
        )


def pool_of(model: Transformer, n_blocks: int = 64) -> BlockPool:
    return BlockPool(model.config, n_blocks, block=BLOCK, dtype=torch.float32)


def engine_of(
    model: Transformer, tokenizer: Tokenizer | None = None, n_blocks: int = 64, **settings: object
) -> BatchEngine:
    decoder = TorchDecoder(model, pool_of(model, n_blocks))
    return BatchEngine(decoder, tokenizer, ServeConfig.parse(settings))


def running(model: Transformer, ids: Sequence[int], settings: GenerateConfig) -> Running:
    """A text that a batch is to write."""
    asked = Job(tuple(ids), settings)
    return Running.begin(asked, Written.begin(model.config, None, settings))


def job(ids: Sequence[int], priority: int = 0, **settings: object) -> Job:
    return Job(tuple(ids), GenerateConfig.parse(settings), priority)


def tokens(stream: Stream) -> list[int]:
    return [piece.token for piece in stream]


def prompts(n: int, seed: int = 0, longest: int = 30) -> list[list[int]]:
    random = Random(seed)
    return [[random.randrange(300) for _ in range(random.randint(1, longest))] for _ in range(n)]


def wait_for(condition: Callable[[], bool]) -> None:
    end = monotonic() + 20
    while not condition():
        assert monotonic() < end
        sleep(0.002)
