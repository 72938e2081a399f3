"""Drafts of the prediction module change how fast texts are written, never which."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product

import pytest
import torch
from infer.echo import echo
from jobs import running
from models import random_ids, random_model

import moesaic
from moesaic.config.infer import GenerateConfig
from moesaic.config.model import ModelConfig
from moesaic.config.presets import get_preset
from moesaic.config.serve import ServeConfig
from moesaic.errors import RequestError
from moesaic.infer.blocks import BlockPool, Held
from moesaic.infer.decoder import CpuDecoder, Decoder, Fed, Known, TorchDecoder
from moesaic.infer.generate import draw_tokens, pool_for
from moesaic.infer.pace import Counts
from moesaic.infer.sample import distribution
from moesaic.infer.steps import Batch
from moesaic.kernels.native.build import library
from moesaic.model.transformer import Transformer

FORMS: dict[str, Callable[..., Decoder]] = {"torch": TorchDecoder, "cpu": CpuDecoder}


@pytest.fixture(params=FORMS)
def build(request: pytest.FixtureRequest) -> Callable[..., Decoder]:
    if request.param == "cpu" and isinstance(library(), str):
        pytest.skip(f"not compiled: {library()}")
    return FORMS[request.param]


def tiny(**changes: object) -> ModelConfig:
    return get_preset("tiny-v3").changed(eos_token_id=None, **changes)


def written(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    config: GenerateConfig,
    build: Callable[..., Decoder] = TorchDecoder,
    **settings: object,
) -> tuple[list[list[int]], list[Counts]]:
    """Texts of a batch that always drafts, and what drafts came to."""
    pool = pool_for(model, [len(prompt) + config.max_new_tokens for prompt in prompts])
    batch = Batch(build(model, pool), ServeConfig.parse({"speculate": "always", **settings}))
    texts = [
        running(model, prompt, config.changed(seed=config.seed + place))
        for place, prompt in enumerate(prompts)
    ]
    ids: list[list[int]] = [[] for _ in texts]
    for step in batch.write(texts):
        for row, pieces in zip(ids, step, strict=True):
            row += [piece.token for piece in pieces]
    batch.rooms.prefixes.clear()
    assert pool.n_free == pool.n_blocks
    return ids, [text.counts for text in texts]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0},
        {"temperature": 1.0, "top_p": 1.0},
        {"temperature": 0.5, "top_p": 0.8},
        {"top_k": 3},
    ],
)
def test_texts_are_those_without_drafts(build: Callable[..., Decoder], settings: dict[str, float]):
    model = random_model(tiny(vocab_size=40)).requires_grad_(False)
    prompts = [random_ids(model.config, 1 + seed, seed=seed).tolist() for seed in range(24)]
    config = GenerateConfig.parse({"max_new_tokens": 12, "seed": 5, **settings})
    texts, counts = written(model, prompts, config, build)
    plain = zip(*draw_tokens(model, prompts, config), strict=True)
    assert texts == [list(tokens) for tokens in plain]
    assert sum(count.drafts for count in counts) > 100
    assert 0 < sum(count.accepted for count in counts) < sum(count.drafts for count in counts)


def test_a_module_that_knows_the_model_halves_the_passes(build: Callable[..., Decoder]):
    """The model says every token again, and so does its module."""
    model = echo(tiny())
    settings = GenerateConfig(max_new_tokens=11, temperature=0)
    texts, counts = written(model, [[3, 1], [7, 7]], settings, build)
    assert texts == [[1] * 11, [7] * 11]
    for count in counts:
        assert (count.passes, count.tokens, count.drafts, count.accepted) == (5, 10, 5, 5)
        assert count.acceptance == 1
        assert count.tokens_per_pass == 2


def test_drafts_are_those_of_the_module_without_cache(build: Callable[..., Decoder]):
    model = random_model(tiny()).requires_grad_(False)
    pool = BlockPool(model.config, 64, block=4, dtype=torch.float32)
    decoder = build(model, pool)
    rows = [random_ids(model.config, n, seed=n).tolist() for n in (30, 9)]
    held = [Held(pool) for _ in rows]
    fed = [Fed(one, tuple(row), "all") for one, row in zip(held, rows, strict=True)]
    hidden = [found.hidden_TD for found in decoder.feed(fed)]
    ahead = [Held(pool, one.blocks) for one in held]
    expected = [
        model.head(
            model.draft(model.hidden_states(torch.tensor([row[:-1]])), torch.tensor([row[1:]]))
        )[0]
        for row in rows
    ]
    plan = [(1, 1), (3, 1), (20, 2), (1, 1), (2, 2), (2, 1)]
    done = [0, 0]
    for step in plan:
        known = [
            Known(one, tuple(row[d + 1 : d + n + 1]), states[d : d + n])
            for one, row, d, n, states in zip(ahead, rows, done, step, hidden, strict=True)
        ]
        logits = decoder.draft(known)
        done = [d + n for d, n in zip(done, step, strict=True)]
        for place, d in enumerate(done):
            torch.testing.assert_close(logits[place], expected[place][d - 1], atol=3e-4, rtol=3e-4)
    assert [one.length for one in ahead] == done


def test_the_last_logits_come_with_all_hidden_states(build: Callable[..., Decoder]):
    model = random_model(tiny()).requires_grad_(False)
    decoder = build(model, BlockPool(model.config, 8, block=8, dtype=torch.float32))
    rows = [(3, 1, 4, 1, 5), (9,), (2, 6)]
    both = [
        decoder.feed([Fed(Held(decoder.pool), ids, wants) for ids in rows])
        for wants in ("end", "all")
    ]
    for ids, end, everything in zip(rows, *both, strict=True):
        assert end.logits_TV.shape == (1, model.config.vocab_size)
        assert end.hidden_TD.shape[0] == len(ids)
        torch.testing.assert_close(end.logits_TV, everything.logits_TV[-1:])
        torch.testing.assert_close(end.hidden_TD, everything.hidden_TD)


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_sampled_texts_are_distributed_as_the_models_own(temperature: float):
    """Texts of three tokens against their exact probabilities, within five standard errors each."""
    model = random_model(tiny(vocab_size=4)).requires_grad_(False)
    settings = GenerateConfig(max_new_tokens=3, temperature=temperature, top_p=0.9)
    texts, counts = written(model, [[1, 2]] * 400, settings)
    seen = Counter(map(tuple, texts))
    everything = list(product(range(4), repeat=3))
    logits_BSV = model(torch.tensor([[1, 2, *text] for text in everything]))[:, 1:4]
    probs = distribution(logits_BSV.flatten(0, 1), settings).unflatten(0, (-1, 3))
    chosen = probs.gather(2, torch.tensor(everything).unsqueeze(-1)).squeeze(-1)
    assert_distributed(
        Counter({i: seen[text] for i, text in enumerate(everything)}), chosen.prod(dim=1).tolist()
    )
    accepted = sum(count.accepted for count in counts)
    assert 0 < accepted < sum(count.drafts for count in counts)


def test_a_seed_gives_the_same_text_in_any_batch_with_drafts_or_without():
    model = random_model(tiny()).requires_grad_(False)
    prompts = [[5, 9, 2], [7], [3, 1, 4, 1, 5, 9, 2, 6]]
    together, plain = (
        moesaic.generate(model, prompts, max_new_tokens=15, seed=4, speculate=way)
        for way in ("always", "never")
    )
    alone = [
        moesaic.generate(model, [prompt], max_new_tokens=15, seed=4 + i, speculate="always")[0]
        for i, prompt in enumerate(prompts)
    ]
    assert together == alone
    assert [text.ids for text in together] == [text.ids for text in plain]


def test_drafts_follow_long_prompts_read_in_pieces(build: Callable[..., Decoder]):
    model = random_model(tiny(vocab_size=40)).requires_grad_(False)
    prompts = [random_ids(model.config, n, seed=n).tolist() for n in (21, 300, 10, 1)]
    settings = GenerateConfig(max_new_tokens=9, temperature=0.7)
    texts, whole = written(model, prompts, settings, build)
    pieces, parts = written(model, prompts, settings, build, prefill_tokens=8)
    assert pieces == texts
    assert parts == whole


def test_a_model_without_module_makes_no_drafts():
    model = random_model(get_preset("tiny-v2")).requires_grad_(False)
    with pytest.raises(RequestError) as error:
        moesaic.generate(model, [[1]], speculate="always")
    assert str(error.value) == (
        "the model has no prediction module (num_nextn_predict_layers=0), which makes drafts; "
        "set speculate to auto or never"
    )
    [text] = moesaic.generate(model, [[1]], max_new_tokens=4, speculate="auto")
    assert text.speculation is None


def assert_distributed(counts: Counter[int], probs: list[float]) -> None:
    n = counts.total()
    for outcome, p in enumerate(probs):
        error = 5 * (p * (1 - p) / n) ** 0.5 + 3 / n  # counts of the rare ones are not normal
        assert abs(counts[outcome] / n - p) <= error, (outcome, counts[outcome] / n, p)
