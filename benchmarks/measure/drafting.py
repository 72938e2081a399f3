"""Texts written without drafts, with them, and with them as long as they gain time.

Letters: T tokens fed, V vocabulary.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from statistics import mean, median
from typing import TypeVar

import torch
from torch import Tensor

from moesaic.config.infer import GenerateConfig, Speculate
from moesaic.config.serve import ServeConfig
from moesaic.infer.blocks import Held
from moesaic.infer.decoder import Decoder, Fed, Found, Known, TorchDecoder, build_decoder
from moesaic.infer.generate import pool_for
from moesaic.infer.job import Job
from moesaic.infer.pace import Counts
from moesaic.infer.sample import sample
from moesaic.infer.sequence import Sequence as Running
from moesaic.infer.steps import Batch
from moesaic.infer.text import Written
from moesaic.model.transformer import Transformer

T = TypeVar("T")
CALL_BY_CALL, COMPILED = "call by call", "compiled"


class Timed:
    """A decoder whose calls are timed."""

    def __init__(self, form: str, model: Transformer, room: int) -> None:
        """With room for one text."""
        self.model, self.pool = model, pool_for(model, [room])
        build = TorchDecoder if form == CALL_BY_CALL else build_decoder
        self._decoder: Decoder = build(model, self.pool)
        self.seconds: dict[str, list[float]] = {}
        """Of passes by their tokens, and of drafts."""

    def feed(self, fed: Sequence[Fed]) -> list[Found]:
        """See `Decoder`."""
        [one] = fed
        return self._timed(f"pass of {len(one.ids)}", lambda: self._decoder.feed(fed))

    def draft(self, known: Sequence[Known]) -> Tensor:
        """See `Decoder`."""
        [one] = known
        what = "draft" if len(one.ids) <= 2 else "draft after more"
        return self._timed(what, lambda: self._decoder.draft(known))

    def _timed(self, what: str, call: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = call()
        self.seconds.setdefault(what, []).append(time.perf_counter() - start)
        return result


def write_plainly(decoder: Decoder, prompt: Sequence[int], config: GenerateConfig) -> float:
    """Seconds per token after the prompt, one token in a pass."""
    held = Held(decoder.pool)
    generator = torch.Generator().manual_seed(config.seed)
    [found] = decoder.feed([Fed(held, tuple(prompt))])
    start = time.perf_counter()
    for _ in range(config.max_new_tokens - 1):
        [token] = sample(found.logits_TV, config, [generator]).tolist()
        [found] = decoder.feed([Fed(held, (token,))])
    seconds = time.perf_counter() - start
    return seconds / (config.max_new_tokens - 1)


def begin(prompt: Sequence[int], config: GenerateConfig) -> Running:
    """A text that nothing ends but its length."""
    job = Job(tuple(prompt), config)
    return Running.begin(job, Written(None, frozenset(), config.max_new_tokens))


def write_with_drafts(
    decoder: Decoder, prompt: Sequence[int], config: GenerateConfig, speculate: Speculate
) -> tuple[float, Counts]:
    """Seconds per token after the first, drafts included, and what these came to."""
    text = begin(prompt, config)
    steps = Batch(decoder, ServeConfig(speculate=speculate)).write([text])
    deque(takewhile(lambda step: not step[0], steps), maxlen=0)
    start = time.perf_counter()
    deque(steps, maxlen=0)
    seconds = time.perf_counter() - start
    return seconds / (config.max_new_tokens - 1), text.counts


@dataclass(slots=True)
class Lap:
    """What one round took."""

    plain_s: list[float] = field(default_factory=list)
    drafted_s: list[float] = field(default_factory=list)
    auto_s: list[float] = field(default_factory=list)
    """Seconds per token of each text."""
    counts: list[Counts] = field(default_factory=list)
    auto_counts: list[Counts] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """See `Timed`."""

    def gain(self, of: list[float]) -> float:
        """Speed over that without drafts."""
        return mean(self.plain_s) / mean(of)

    def cost(self, of: str) -> float:
        """Median time of a call over that of a pass of one token."""
        return median(self.seconds[of]) / median(self.seconds["pass of 1"])


def run_lap(
    form: str, model: Transformer, prompts: Sequence[Sequence[int]], config: GenerateConfig
) -> Lap:
    """Every text in all three ways, one after the other."""
    lap, room = Lap(), max(map(len, prompts)) + config.max_new_tokens
    for prompt in prompts:
        plain, drafted, auto = (Timed(form, model, room) for _ in range(3))
        lap.plain_s.append(write_plainly(plain, prompt, config))
        ways: tuple[tuple[Decoder, Speculate, list[float], list[Counts]], ...] = (
            (drafted, "always", lap.drafted_s, lap.counts),
            (auto, "auto", lap.auto_s, lap.auto_counts),
        )
        for decoder, way, seconds, counts in ways:
            took_s, count = write_with_drafts(decoder, prompt, config, way)
            seconds.append(took_s)
            counts.append(count)
        for decoder in (plain, drafted):
            for what, each in decoder.seconds.items():
                lap.seconds.setdefault(what, []).extend(each)
    return lap
