"""What an engine hands over reaches whoever reads it in an event loop."""

import asyncio

import pytest
from jobs import Slow, job, pool_of, wait_for

from moesaic.config.serve import ServeConfig
from moesaic.infer.batching import BatchEngine
from moesaic.infer.job import LateError
from moesaic.model.transformer import Transformer
from moesaic.serve.asking import Asked


def test_an_error_that_comes_with_pieces_reaches_the_reader(model: Transformer):
    """Both are there, and were announced, before the reader looks."""
    decoder = Slow(model, pool_of(model))
    decoder.gap_s = 0.01

    async def read(engine: BatchEngine) -> None:
        asked = Asked(engine, [job([1, 2], max_new_tokens=100)])
        wait_for(lambda: engine.stats().meter.requests["late"] == 1)
        await asyncio.sleep(0.05)  # the count goes before the error
        assert engine.stats().meter.tokens["drawn"] > 0
        await asked.collect()

    with (
        BatchEngine(decoder, None, ServeConfig(timeout_s=0.1)) as engine,
        pytest.raises(LateError, match=r"was not finished within 0\.1 s"),
    ):
        asyncio.run(asyncio.wait_for(read(engine), 20))
