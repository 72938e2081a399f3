"""Drafts of the prediction module change how fast a text is written, never which text."""

from collections import Counter
from collections.abc import Callable
from itertools import product

import pytest
import torch
from infer.echo import echo
from models import random_ids, random_model

import moesaic
from moesaic.config.infer import GenerateConfig
from moesaic.config.presets import get_preset
from moesaic.errors import RequestError
from moesaic.infer import speculative
from moesaic.infer.blocks import BlockPool, Held
from moesaic.infer.decoder import CpuDecoder, Decoder, Fed, Known, TorchDecoder
from moesaic.infer.draft import Draft, verify
from moesaic.infer.generate import draw_tokens, pool_for
from moesaic.infer.pace import Pace
from moesaic.infer.sample import distribution
from moesaic.infer.speculative import Speculation
from moesaic.kernels.native.build import library
from moesaic.model.transformer import Transformer

FORMS: dict[str, Callable[..., Decoder]] = {"torch": TorchDecoder, "cpu": CpuDecoder}


@pytest.fixture(params=FORMS)
def build(request: pytest.FixtureRequest) -> Callable[..., Decoder]:
    if request.param == "cpu" and isinstance(library(), str):
        pytest.skip(f"not compiled: {library()}")
    return FORMS[request.param]


def speculation(
    model: Transformer,
    prompts: list[list[int]],
    config: GenerateConfig,
    build: Callable[..., Decoder] = TorchDecoder,
) -> Speculation:
    pool = pool_for(model, [len(prompt) + config.max_new_tokens for prompt in prompts])
    return Speculation(build(model, pool), prompts, config, Pace(may_stop=False))


def texts_of(made: Speculation) -> list[list[int]]:
    passes = list(made.draw())
    return [[token for tokens in text for token in tokens] for text in zip(*passes, strict=True)]


def test_greedy_texts_are_those_without_drafts(build: Callable[..., Decoder]):
    model = random_model(get_preset("tiny-v3").changed(vocab_size=40)).requires_grad_(False)
    prompts = [random_ids(model.config, 1 + seed, seed=seed).tolist() for seed in range(24)]
    settings = GenerateConfig(max_new_tokens=12, temperature=0)
    made = speculation(model, prompts, settings, build)
    plain = zip(*draw_tokens(model, prompts, settings), strict=True)
    assert texts_of(made) == [list(tokens) for tokens in plain]
    assert sum(count.drafts for count in made.counts) > 100


def test_a_module_that_knows_the_model_halves_the_passes(build: Callable[..., Decoder]):
    """The model says every token again, and so does its module."""
    model = echo(get_preset("tiny-v3"))
    settings = GenerateConfig(max_new_tokens=11, temperature=0)
    made = speculation(model, [[3, 1], [7]], settings, build)
    assert texts_of(made) == [[1] * 11, [7] * 11]
    for count in made.counts:
        assert (count.passes, count.tokens, count.drafts, count.accepted) == (5, 10, 5, 5)
        assert count.acceptance == 1
        assert count.tokens_per_pass == 2


def test_drafts_are_those_of_the_module_without_cache(build: Callable[..., Decoder]):
    model = random_model(get_preset("tiny-v3")).requires_grad_(False)
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


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.6}])
def test_a_verified_token_is_distributed_as_the_models_own(
    settings: dict[str, float], generator: torch.Generator
):
    """Over every draft with its probability: 5000 draws, within five standard errors."""
    config = GenerateConfig.parse({"temperature": 1.0, "top_p": 1.0, **settings})
    own_TV, guess_TV = torch.randn(2, 2, 6, generator=generator)
    q_V = distribution(guess_TV[:1], config)[0]
    p_TV = distribution(own_TV, config)
    n = 5_000
    counts, pairs = Counter(), Counter()
    for token in torch.multinomial(q_V, n, replacement=True, generator=generator).tolist():
        drawn = verify(Draft(token, q_V), own_TV, config, generator)
        counts[drawn[0]] += 1
        pairs.update(drawn[1:])
    assert_distributed(counts, p_TV[0].tolist())
    assert_distributed(pairs, p_TV[1].tolist())
    kept = float(torch.minimum(p_TV[0], q_V).sum())
    assert abs(pairs.total() / n - kept) < 5 * (kept * (1 - kept) / n) ** 0.5 + 1e-9


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_sampled_texts_are_distributed_as_the_models_own(temperature: float):
    """Texts of three tokens against their exact probabilities, within five standard errors each."""
    model = random_model(get_preset("tiny-v3").changed(vocab_size=4)).requires_grad_(False)
    settings = GenerateConfig(max_new_tokens=3, temperature=temperature, top_p=0.9)
    made = speculation(model, [[1, 2]] * 800, settings)
    seen = Counter(map(tuple, texts_of(made)))
    everything = list(product(range(4), repeat=3))
    logits_BSV = model(torch.tensor([[1, 2, *text] for text in everything]))[:, 1:4]
    probs = distribution(logits_BSV.flatten(0, 1), settings).unflatten(0, (-1, 3))
    chosen = probs.gather(2, torch.tensor(everything).unsqueeze(-1)).squeeze(-1)
    assert_distributed(
        Counter({i: seen[text] for i, text in enumerate(everything)}), chosen.prod(dim=1).tolist()
    )
    accepted = sum(count.accepted for count in made.counts)
    assert 0 < accepted < sum(count.drafts for count in made.counts)


def test_a_seed_gives_the_same_sampled_text_in_any_batch():
    model = random_model(get_preset("tiny-v3")).requires_grad_(False)
    prompts = [[5, 9, 2], [7], [3, 1, 4, 1, 5, 9, 2, 6]]
    together = moesaic.generate(model, prompts, max_new_tokens=15, seed=4, speculate="always")
    again = moesaic.generate(model, prompts, max_new_tokens=15, seed=4, speculate="always")
    alone = [
        moesaic.generate(model, [prompt], max_new_tokens=15, seed=4 + i, speculate="always")[0]
        for i, prompt in enumerate(prompts)
    ]
    assert together == again == alone


def test_blocks_beyond_the_text_are_given_back(build: Callable[..., Decoder]):
    model = random_model(get_preset("tiny-v3")).requires_grad_(False)
    pool = BlockPool(model.config, 12, block=2, dtype=torch.float32)
    settings = GenerateConfig(max_new_tokens=20, temperature=0)
    made = Speculation(build(model, pool), [[1, 2, 3]], settings, Pace(may_stop=False))
    [text] = texts_of(made)
    assert len(text) == 20
    assert pool.n_free == 1  # 22 positions were fed: of the last token none


def test_prompts_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch):
    model = random_model(get_preset("tiny-v3")).requires_grad_(False)
    prompts = [random_ids(model.config, n, seed=n).tolist() for n in (21, 8, 9, 1)]
    settings = GenerateConfig(max_new_tokens=6, temperature=0.7)
    whole = texts_of(speculation(model, prompts, settings))
    monkeypatch.setattr(speculative, "_AT_ONCE", 16)
    pieces = speculation(model, prompts, settings)
    assert texts_of(pieces) == whole


def test_a_model_without_module_makes_no_drafts():
    model = random_model(get_preset("tiny-v2")).requires_grad_(False)
    with pytest.raises(RequestError) as error:
        moesaic.generate(model, [[1]], speculate="always")
    assert str(error.value) == (
        "the model has no prediction module (num_nextn_predict_layers=0), which makes drafts; "
        "generate without speculation"
    )
    [text] = moesaic.generate(model, [[1]], max_new_tokens=4, speculate="auto")
    assert text.speculation is None


def assert_distributed(counts: Counter[int], probs: list[float]) -> None:
    n = counts.total()
    for outcome, p in enumerate(probs):
        error = 5 * (p * (1 - p) / n) ** 0.5 + 3 / n  # counts of the rare ones are not normal
        assert abs(counts[outcome] / n - p) <= error, (outcome, counts[outcome] / n, p)
