"""A running batch drafts for every request, and gives each what it gets without drafts."""

from collections.abc import Callable
from random import Random
from time import sleep
from typing import Any

import pytest
import torch
from infer.echo import echo
from jobs import BLOCK, Failing, engine_of, job, pool_of, prompts, tokens, wait_for
from models import random_model

from moesaic.config.infer import GenerateConfig
from moesaic.config.presets import get_preset
from moesaic.config.serve import ServeConfig
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import RequestError
from moesaic.infer.batching import BatchEngine
from moesaic.infer.decoder import Decoder, TorchDecoder, build_decoder
from moesaic.infer.grammar import Grammars
from moesaic.infer.job import Job, Piece
from moesaic.model.transformer import Transformer

FORMS: dict[str, Callable[..., Decoder]] = {"torch": TorchDecoder, "best": build_decoder}
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.2, "top_k": 5},
]


def answered(
    decoder: Decoder, asked: list[Job], tokenizer: Tokenizer | None = None, **settings: object
) -> tuple[list[list[Piece]], BatchEngine]:
    """What every job gets, asked all at once; the closed engine."""
    with BatchEngine(decoder, tokenizer, ServeConfig.parse(settings)) as engine:
        streams = [engine.submit(each) for each in asked]
        pieces = [list(stream) for stream in streams]
        wait_for(lambda: engine.stats().blocks_free == decoder.pool.n_blocks)
    assert decoder.pool.n_free == decoder.pool.n_blocks
    return pieces, engine


def jobs(n: int, **further: Any) -> list[Job]:
    rows = prompts(n, seed=3, longest=20)
    return [
        Job(
            tuple(row),
            GenerateConfig(max_new_tokens=4 + at, seed=at, **SETTINGS[at % len(SETTINGS)]),
            **further,
        )
        for at, row in enumerate(rows)
    ]


@pytest.fixture
def chatty() -> Transformer:
    """A model whose module is right often, not always."""
    config = get_preset("tiny-v3").changed(vocab_size=300, eos_token_id=None)
    return random_model(config).requires_grad_(False)


def accepted_of(engine: BatchEngine) -> tuple[int, int]:
    counts = engine.stats().meter.drafts
    return counts.accepted, counts.drafts


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("n_blocks", "prefill_tokens"), [(200, 256), (200, 5), (20, 256)])
def test_tokens_and_log_probabilities_are_those_without_drafts(
    chatty: Transformer, form: str, n_blocks: int, prefill_tokens: int
):
    """Also where few have room at a time, so that some are set back."""
    asked = jobs(12, top_logprobs=2)
    found = {}
    for way in ("never", "always", "auto"):
        decoder = FORMS[form](chatty, pool_of(chatty, n_blocks))
        found[way], engine = answered(decoder, asked, speculate=way, prefill_tokens=prefill_tokens)
        accepted, drafts = accepted_of(engine)
        assert (0 < accepted < drafts) == (way == "always") or way == "auto"
        assert (engine.stats().meter.tokens["again"] > 0) == (n_blocks == 20)
    for plain, drafted, auto in zip(*found.values(), strict=True):
        assert [p.token for p in plain] == [p.token for p in drafted] == [p.token for p in auto]
        for one, other in zip(plain, drafted, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [p for _, p in one.top_logprobs] == pytest.approx(
                [p for _, p in other.top_logprobs], abs=1e-4
            )
            assert one.ending == other.ending


def test_a_module_that_knows_the_model_halves_the_steps(tokenizer: Tokenizer):
    model = echo(get_preset("tiny-v3").changed(vocab_size=300, eos_token_id=None))
    asked = [Job((3, n), GenerateConfig(max_new_tokens=41, temperature=0)) for n in range(4, 8)]
    found, engine = answered(TorchDecoder(model, pool_of(model)), asked, speculate="always")
    assert [[p.token for p in pieces] for pieces in found] == [[n] * 41 for n in range(4, 8)]
    assert accepted_of(engine) == (80, 80)
    assert engine.stats().meter.drafts.tokens_per_pass == 2


def test_stop_texts_and_ends_cut_a_right_draft(model: Transformer, tokenizer: Tokenizer):
    """The model repeats itself: what is drafted beyond the stop is right, and never told."""
    copy = echo(model.config)
    [token] = tokenizer.encode("e")
    asked = [
        Job((3, token), GenerateConfig(max_new_tokens=40, temperature=0, stop=("e" * n,)))
        for n in (2, 3, 4, 5)
    ]
    found, engine = answered(
        TorchDecoder(copy, pool_of(copy)), asked, tokenizer, speculate="always"
    )
    assert ["".join(p.text for p in pieces) for pieces in found] == [""] * 4
    assert [len(pieces) for pieces in found] == [2, 3, 4, 5]
    assert {pieces[-1].ending for pieces in found} == {"stop"}
    assert accepted_of(engine)[0] > 0


def test_drafts_follow_a_grammar(model: Transformer, tokenizer: Tokenizer):
    grammar = Grammars(model.config, tokenizer).of_regex("(one|two){3,12}")
    found = {}
    for way in ("never", "always"):
        asked = jobs(6, grammar=grammar)
        decoder = TorchDecoder(model, pool_of(model, 128))
        found[way], engine = answered(decoder, asked, tokenizer, speculate=way)
    assert found["always"] == found["never"]
    assert accepted_of(engine)[0] > 0


def test_a_prompt_is_echoed_and_embedded_as_without_drafts(
    model: Transformer, tokenizer: Tokenizer
):
    asked = [*jobs(4, echoes=True, top_logprobs=0), *jobs(3, embeds=True), *jobs(3)]
    found = {}
    for way in ("never", "always"):
        decoder = TorchDecoder(model, pool_of(model, 128))
        found[way], _ = answered(decoder, asked, tokenizer, speculate=way, prefill_tokens=6)
    for plain, drafted in zip(*found.values(), strict=True):
        assert [(p.token, p.text, p.of_prompt) for p in plain] == [
            (p.token, p.text, p.of_prompt) for p in drafted
        ]
        for one, other in zip(plain, drafted, strict=True):
            assert one.logprob == (
                None if other.logprob is None else pytest.approx(other.logprob, abs=1e-4)
            )
            if one.embedding_D is not None and other.embedding_D is not None:
                torch.testing.assert_close(one.embedding_D, other.embedding_D)


@pytest.mark.parametrize("deterministic", [False, True])
def test_requests_that_join_and_leave_at_random_give_all_blocks_back(
    chatty: Transformer, deterministic: bool
):
    random, pool = Random(1), pool_of(chatty, 24)
    settings = ServeConfig(
        max_running=5,
        max_queue=400,
        prefill_tokens=16,
        speculate="always",
        deterministic=deterministic,
    )
    with BatchEngine(TorchDecoder(chatty, pool), None, settings) as engine:
        shared, streams = prompts(3, seed=5, longest=20), []
        for row in prompts(60, seed=2, longest=12):
            ids = [*random.choice(shared), *row] if random.random() < 0.5 else row
            asked = {"max_new_tokens": random.randint(1, 12), "seed": random.randrange(9)}
            streams.append(engine.submit(job(ids, random.randint(0, 2), **asked)))
            if random.random() < 0.3:
                random.choice(streams).cancel()
            sleep(random.random() * 0.002)
        for stream in streams:
            tokens(stream)
        wait_for(lambda: engine.stats().blocks_free == pool.n_blocks)
        assert accepted_of(engine)[1] > 0
    assert pool.n_free == pool.n_blocks


def test_the_same_numbers_to_the_last_bit_with_drafts_where_it_is_deterministic(
    chatty: Transformer,
):
    [asked] = [
        Job(tuple(prompts(1, seed=7, longest=40)[0]), GenerateConfig(max_new_tokens=12), 0, 3)
    ]
    with engine_of(chatty, deterministic=True, prefill_tokens=8, speculate="always") as engine:
        alone = list(engine.submit(asked))
        others = [engine.submit(job(row, max_new_tokens=20)) for row in prompts(5, seed=8)]
        assert list(engine.submit(asked)) == alone
        assert all(tokens(other) for other in others)
        assert accepted_of(engine)[1] > 0


def test_time_decides_nothing_where_it_is_deterministic(chatty: Transformer):
    with engine_of(chatty, deterministic=True) as engine:
        assert len(tokens(engine.submit(job([3, 1], max_new_tokens=20)))) == 20
        assert accepted_of(engine) == (0, 0)


def test_prompts_that_begin_alike_are_shared_with_what_the_module_read(chatty: Transformer):
    start = prompts(1, seed=4, longest=30)[0] * 3
    asked = [Job((*start, n), GenerateConfig(max_new_tokens=10, seed=n)) for n in range(6)]
    found = {}
    for way in ("never", "always"):
        with engine_of(chatty, n_blocks=200, speculate=way) as engine:
            found[way] = [tokens(engine.submit(each)) for each in asked]
            shared = engine.stats().meter.tokens["found"]
            assert shared >= 5 * (len(start) // BLOCK - 1) * BLOCK
    assert found["never"] == found["always"]


def test_an_error_of_one_request_ends_no_other(chatty: Transformer):
    settings = ServeConfig(speculate="always")
    with BatchEngine(Failing(chatty, pool_of(chatty)), None, settings) as engine:
        streams = [engine.submit(job([n, 2], max_new_tokens=8)) for n in (11, 13, 12)]
        with pytest.raises(ValueError, match="out of luck"):
            tokens(streams[1])
        assert len(tokens(streams[0])) == len(tokens(streams[2])) == 8
        wait_for(lambda: engine.stats().blocks_free == 64)


def test_drafts_that_have_to_be_made_need_a_module():
    model = random_model(get_preset("tiny-v2"))
    with pytest.raises(RequestError, match=r"has no prediction module .* set speculate to auto or"):
        engine_of(model, speculate="always")
    with engine_of(model) as engine:
        assert len(tokens(engine.submit(job([3, 1], max_new_tokens=3, temperature=0)))) <= 3
