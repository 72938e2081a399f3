"""A running batch gives every request what it would get alone, and takes back all it lent."""

from collections.abc import Callable
from contextlib import suppress
from random import Random
from time import sleep
from typing import Any

import pytest
import torch
from jobs import Failing, Garbling, Slow, engine_of, job, pool_of, prompts, tokens, wait_for

import moesaic
from moesaic.config.infer import GenerateConfig
from moesaic.config.model import ModelConfig
from moesaic.config.serve import ServeConfig
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import RequestError
from moesaic.infer.batching import BatchEngine
from moesaic.infer.decoder import TorchDecoder, build_decoder
from moesaic.infer.job import BusyError, Job, LateError, Stream
from moesaic.model.build import build_model
from moesaic.model.transformer import Transformer


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_request_gets_what_generate_gives_it_alone(
    tiny_config: Callable[..., ModelConfig], family: str, deterministic: bool
):
    model = build_model(tiny_config(family, vocab_size=300, eos_token_id=None), seed=3)
    rows = prompts(8)
    settings = [
        {
            "max_new_tokens": 5 + row,
            "seed": row,
            "temperature": row % 3 / 2,
            "top_k": row % 2 * 9 or None,
        }
        for row in range(8)
    ]
    alone = [
        moesaic.generate(model, [row], **each)[0].ids
        for row, each in zip(rows, settings, strict=True)
    ]
    with engine_of(model, prefill_tokens=8, max_running=4, deterministic=deterministic) as engine:
        streams = [engine.submit(job(r, **s)) for r, s in zip(rows, settings, strict=True)]
        assert [tuple(tokens(stream)) for stream in streams] == alone


def test_the_decoder_that_suits_the_machine_serves_a_batch(model: Transformer):
    rows = prompts(20, seed=3, longest=20)
    settings: dict[str, Any] = {"max_new_tokens": 6, "temperature": 0}
    alone = [moesaic.generate(model, [row], **settings)[0].ids for row in rows]
    decoder = build_decoder(model.requires_grad_(False), pool_of(model, 128))
    with BatchEngine(decoder, None, ServeConfig(prefill_tokens=8)) as engine:
        streams = [engine.submit(job(row, **settings)) for row in rows]
        assert [tuple(tokens(stream)) for stream in streams] == alone


def test_texts_and_endings_are_those_of_generate(model: Transformer, tokenizer: Tokenizer):
    settings = {"max_new_tokens": 30, "temperature": 1.0, "stop": ("e", "th")}
    texts = ["one two", "three", "four five, one", "two"]
    with engine_of(model, tokenizer) as engine:
        streams = [engine.submit(job(tokenizer.encode_prompt(text), **settings)) for text in texts]
        pieces = [list(stream) for stream in streams]
    alone = [moesaic.generate(model, [text], tokenizer, **settings)[0] for text in texts]
    assert ["".join(p.text for p in each) for each in pieces] == [text.text for text in alone]
    assert [each[-1].ending for each in pieces] == [text.ending for text in alone]
    assert "stop" in [text.ending for text in alone]


def test_sequences_that_lose_their_room_are_computed_again(model: Transformer):
    rows = prompts(6, longest=12)
    alone = [moesaic.generate(model, [row], max_new_tokens=30)[0].ids for row in rows]
    with engine_of(model, n_blocks=16) as engine:
        streams = [engine.submit(job(row, max_new_tokens=30)) for row in rows]
        assert [tuple(tokens(stream)) for stream in streams] == alone
        assert engine.stats().meter.tokens["again"] > 0


@pytest.mark.parametrize(("deterministic", "n"), [(False, 200), (True, 40)])
def test_requests_that_join_and_leave_at_random_give_all_blocks_back(
    model: Transformer, deterministic: bool, n: int
):
    random = Random(1)
    pool = pool_of(model, 24)
    config = ServeConfig(
        max_running=5, max_queue=400, prefill_tokens=16, deterministic=deterministic
    )
    engine = BatchEngine(TorchDecoder(model, pool), None, config)
    shared = prompts(3, seed=5, longest=20)
    streams = []
    for row in prompts(n, seed=2, longest=12):
        ids = [*random.choice(shared), *row] if random.random() < 0.5 else row
        settings = {"max_new_tokens": random.randint(1, 12), "seed": random.randrange(9)}
        streams.append(engine.submit(job(ids, random.randint(0, 2), **settings)))
        if random.random() < 0.3:
            random.choice(streams).cancel()
        sleep(random.random() * 0.002)
    for stream in streams:
        for _ in stream:
            pass
    wait_for(lambda: engine.stats().blocks_free == pool.n_blocks)
    engine.close()
    assert pool.n_free == pool.n_blocks
    assert sum(engine.stats().meter.requests.values()) == n


def test_the_same_numbers_to_the_last_bit_where_it_is_deterministic(model: Transformer):
    ids = prompts(1, seed=7, longest=40)[0]
    asked = Job(tuple(ids), GenerateConfig(max_new_tokens=12), top_logprobs=3)
    with engine_of(model, deterministic=True, prefill_tokens=8) as engine:
        alone = list(engine.submit(asked))
        others = [engine.submit(job(row, max_new_tokens=20)) for row in prompts(5, seed=8)]
        assert list(engine.submit(asked)) == alone
        assert all(tokens(other) for other in others)


def test_lower_priorities_go_first_and_equal_ones_in_their_order(model: Transformer):
    decoder = Slow(model, pool_of(model))
    decoder.gap_s = 0.1
    with BatchEngine(decoder, None, ServeConfig(max_running=1)) as engine:
        ended: list[str] = []
        first = engine.submit(job([1], max_new_tokens=2))
        wait_for(lambda: engine.stats().running == 1)
        decoder.gap_s = 0.0
        order = {"late": 5, "soon": 1, "soon too": 1, "now": -1}
        streams = {}
        for name, priority in order.items():
            wake = lambda name=name: ended.append(name)  # noqa: E731
            streams[name] = engine.submit(job([2], priority, max_new_tokens=1), wake)
        tokens(first)
        for stream in streams.values():
            tokens(stream)
    assert ended == ["now", "soon", "soon too", "late"]


def test_a_long_prompt_does_not_hold_up_a_running_answer(model: Transformer):
    decoder = Slow(model, pool_of(model))
    with BatchEngine(decoder, None, ServeConfig(prefill_tokens=8)) as engine:
        running = engine.submit(job([1, 2], max_new_tokens=60))
        next(iter(running))
        tokens(engine.submit(job(range(80), max_new_tokens=1)))
        running.cancel()
    reading = [place for place, sizes in enumerate(decoder.sizes) if sizes == [8]]
    assert len(reading) == 10
    assert all(decoder.sizes[place + 1] in ([1], [2]) for place in reading[:-1])


def test_a_cancelled_request_gives_its_blocks_back_and_ends(model: Transformer):
    with engine_of(model) as engine:
        stream = engine.submit(job([1, 2, 3], max_new_tokens=100))
        next(iter(stream))
        stream.cancel()
        assert len(tokens(stream)) < 99
        wait_for(lambda: engine.stats().blocks_free == 64)
        assert engine.stats().meter.requests == {"cancelled": 1}


def test_an_error_of_one_request_ends_no_other(model: Transformer):
    with BatchEngine(Failing(model, pool_of(model))) as engine:
        streams = [engine.submit(job([n, 2], max_new_tokens=8)) for n in (11, 13, 12)]
        with pytest.raises(ValueError, match="out of luck"):
            tokens(streams[1])
        assert len(tokens(streams[0])) == len(tokens(streams[2])) == 8
        wait_for(lambda: engine.stats().blocks_free == 64)


def test_nobody_waits_for_an_answer_that_our_own_mistake_ended(model: Transformer):
    """There is room for few, so that some have just lost theirs when a pass goes wrong."""
    decoder = Garbling(model, pool_of(model, 16))
    with BatchEngine(decoder, None, ServeConfig(prefill_tokens=8)) as engine:
        asked = [engine.submit(job(row, max_new_tokens=20)) for row in prompts(16)]
        wait_for(lambda: all([_is_over(stream) for stream in asked]))
        assert engine.stats().meter.requests["failed"] > 0
        wait_for(lambda: engine.stats().blocks_free == 16)
        assert engine.stats().waiting == engine.stats().running == 0


def _is_over(stream: Stream) -> bool:
    with suppress(Exception):
        stream.ready()
    return stream.ended


def test_logits_that_are_no_numbers_end_their_request(model: Transformer):
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = torch.nan
    with engine_of(model) as engine:
        bad, good = (
            engine.submit(job([5], max_new_tokens=3)),
            engine.submit(job([6], max_new_tokens=3)),
        )
        with pytest.raises(RequestError, match="logits are not finite"):
            tokens(bad)
        assert len(tokens(good)) == 3


def test_a_request_that_never_fits_is_refused_and_tells_the_fix(model: Transformer):
    with engine_of(model, n_blocks=4) as engine:
        with pytest.raises(RequestError, match=r"together more than the 16 positions .* cache_tok"):
            engine.submit(job([1] * 10, max_new_tokens=7))
        assert len(tokens(engine.submit(job([1] * 10, max_new_tokens=6)))) == 6


def test_the_queue_is_bounded(model: Transformer):
    with engine_of(model, max_running=1, max_queue=1) as engine:
        streams = [engine.submit(job([n], max_new_tokens=100)) for n in range(2)]
        with pytest.raises(BusyError, match="1 requests are running and 1 wait; ask again later"):
            engine.submit(job([3], max_new_tokens=1))
        for stream in streams:
            stream.cancel()


def test_a_request_that_takes_too_long_is_given_up(model: Transformer):
    decoder = Slow(model, pool_of(model))
    decoder.gap_s = 0.02
    with BatchEngine(decoder, None, ServeConfig(timeout_s=0.1)) as engine:
        stream = engine.submit(job([1], max_new_tokens=100))
        with pytest.raises(LateError, match=r"was not finished within 0\.1 s; ask for fewer"):
            tokens(stream)
        wait_for(lambda: engine.stats().blocks_free == 64)


def test_logprobs_are_those_of_the_model(model: Transformer):
    ids = (4, 8, 15)
    with engine_of(model) as engine:
        [piece] = engine.submit(Job(ids, GenerateConfig(max_new_tokens=1), top_logprobs=2))
    with torch.no_grad():
        logprobs = model(torch.tensor([ids]))[0, -1].double().log_softmax(-1)
    best = logprobs.topk(2)
    assert piece.logprob == pytest.approx(float(logprobs[piece.token]), abs=1e-5)
    assert [id_ for id_, _ in piece.top_logprobs] == best.indices.tolist()
    assert [p for _, p in piece.top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-5)
    with pytest.raises(RequestError, match="top_logprobs=21 is not from 0 to 20"):
        Job(ids, top_logprobs=21)


@pytest.mark.parametrize("n_blocks", [64, 8])
def test_a_prompt_is_echoed_with_the_probabilities_of_the_model(
    model: Transformer, tokenizer: Tokenizer, n_blocks: int
):
    texts = ["one two three four five", "four, two", "o", "five four"]
    rows = [tokenizer.encode_prompt(text) for text in texts]
    settings = GenerateConfig(max_new_tokens=14, seed=1)
    with engine_of(model, tokenizer, n_blocks, prefill_tokens=3) as engine:
        asked = [Job(tuple(row), settings, top_logprobs=1, echoes=True) for row in rows * 2]
        streams = [engine.submit(job) for job in asked]
        found = [list(stream) for stream in streams]
    for row, text, pieces in zip(rows * 2, texts * 2, found, strict=True):
        with torch.no_grad():
            logprobs = model(torch.tensor([row]))[0].double().log_softmax(-1)
        echoed = [piece for piece in pieces if piece.of_prompt]
        told = [piece.logprob for piece in echoed]
        expected = [float(logprobs[at, id_]) for at, id_ in enumerate(row[1:])]
        assert pieces[: len(row)] == echoed
        assert "".join(piece.text for piece in echoed) == text
        assert [piece.token for piece in echoed] == row
        assert told == [None, *(pytest.approx(each, abs=1e-4) for each in expected)]
        assert len(pieces) == len(row) + 14


def test_closing_ends_what_runs_and_takes_nothing_new(model: Transformer):
    pool = pool_of(model)
    engine = BatchEngine(TorchDecoder(model, pool))
    stream = engine.submit(job([1, 2], max_new_tokens=20))
    engine.close()
    assert len(tokens(stream)) == 20
    with pytest.raises(BusyError, match="the server is stopping"):
        engine.submit(job([1], max_new_tokens=1))
    assert pool.n_free == pool.n_blocks


def test_closing_gives_up_what_takes_too_long(model: Transformer):
    decoder = Slow(model, pool_of(model))
    decoder.gap_s = 0.05
    engine = BatchEngine(decoder)
    stream = engine.submit(job([1, 2], max_new_tokens=120))
    engine.close(wait_s=0.1)
    assert len(tokens(stream)) < 20
    assert decoder.pool.n_free == decoder.pool.n_blocks
