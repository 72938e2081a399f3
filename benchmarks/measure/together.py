"""Several texts at once by the engine of a server: without drafts, with them, and with them as long
as they gain time, in turns."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import Any, get_args

from benchmarks.measure.drafting import CALL_BY_CALL
from moesaic.config.infer import GenerateConfig, Speculate
from moesaic.config.serve import ServeConfig
from moesaic.infer.batching import BatchEngine
from moesaic.infer.decoder import TorchDecoder, build_decoder
from moesaic.infer.generate import pool_for
from moesaic.infer.job import Job, Stream
from moesaic.infer.pace import Counts
from moesaic.model.transformer import Transformer

Asked = Sequence[Sequence[int]]
"""Prompts."""
WAYS: tuple[Speculate, ...] = get_args(Speculate)


@dataclass(slots=True)
class Together:
    """What was measured with some texts at once."""

    seconds: dict[Speculate, list[float]] = field(default_factory=lambda: {w: [] for w in WAYS})
    """Of each round, from the first request to the last token."""
    counts: dict[Speculate, Counts] = field(default_factory=dict)

    def gains(self, way: Speculate) -> list[float]:
        """Speed over that without drafts, round by round."""
        pairs = zip(self.seconds["never"], self.seconds[way], strict=True)
        return [plain / took for plain, took in pairs]

    def speed(self, way: Speculate, tokens: int) -> float:
        """Median of the tokens per second."""
        return tokens / median(self.seconds[way])


def write_together(
    form: str, model: Transformer, asked: Asked, config: GenerateConfig, rounds: int
) -> Together:
    """Rounds of every way in turns; each way's engine goes on, as a server does.

    The first round is not counted: in it drafts are tried.
    """
    found = Together()
    with ExitStack() as stack:
        engines: dict[Speculate, BatchEngine] = {}
        for way in WAYS:
            engines[way] = stack.enter_context(_engine(form, model, asked, config, way))
        for lap in range(rounds + 1):
            for way, engine in engines.items():
                seconds = _ask(engine, asked, config, lap)
                if lap:
                    found.seconds[way].append(seconds)
        found.counts.update((way, engine.stats().meter.drafts) for way, engine in engines.items())
    return found


def _engine(
    form: str, model: Transformer, asked: Asked, config: GenerateConfig, way: Speculate
) -> BatchEngine:
    pool = pool_for(model, [len(row) + config.max_new_tokens for row in asked])
    decoder = TorchDecoder(model, pool) if form == CALL_BY_CALL else build_decoder(model, pool)
    return BatchEngine(decoder, None, ServeConfig(speculate=way))


def _ask(engine: BatchEngine, asked: Asked, config: GenerateConfig, lap: int) -> float:
    """Seconds until all have what they asked for."""
    jobs = [
        Job(tuple(row), config.changed(seed=1000 * lap + place)) for place, row in enumerate(asked)
    ]
    start = time.perf_counter()
    streams: list[Stream] = [engine.submit(job) for job in jobs]
    lengths = [sum(1 for _ in stream) for stream in streams]
    seconds = time.perf_counter() - start
    assert set(lengths) == {config.max_new_tokens}, "a text ended early"
    return seconds


def told(found: Together, tokens: int) -> dict[str, Any]:
    """The figures of a case."""
    always, auto = found.counts["always"], found.counts["auto"]
    return {
        "tokens_per_s_without": round(found.speed("never", tokens), 1),
        "gain": round(median(found.gains("always")), 3),
        "gains": [round(gain, 3) for gain in found.gains("always")],
        "acceptance": round(always.acceptance, 3),
        "tokens_per_pass": round(always.tokens_per_pass, 3),
        "gain_auto": round(median(found.gains("auto")), 3),
        "gains_auto": [round(gain, 3) for gain in found.gains("auto")],
        "drafted_auto": round(auto.drafts / max(1, auto.passes), 3),
    }
