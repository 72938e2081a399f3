"""Decoders feed any mixture of prompts and single tokens, and give what the model gives."""

from collections.abc import Callable

import pytest
import torch
from models import random_ids, random_model

from moesaic.config.presets import get_preset
from moesaic.errors import RequestError
from moesaic.infer import decoder
from moesaic.infer.blocks import BlockPool, Held
from moesaic.infer.decoder import (
    CpuDecoder,
    Decoder,
    Fed,
    GpuDecoder,
    TorchDecoder,
    build_decoder,
)
from moesaic.kernels.native.build import library

FORMS: dict[str, Callable[..., Decoder]] = {
    "torch": TorchDecoder,
    "cpu": CpuDecoder,
    "gpu": GpuDecoder,
}


@pytest.fixture(params=FORMS)
def build(request: pytest.FixtureRequest) -> Callable[..., Decoder]:
    if request.param == "cpu" and isinstance(library(), str):
        pytest.skip(f"not compiled: {library()}")
    return FORMS[request.param]


@pytest.mark.parametrize("family", ["tiny-v1", "tiny-v2", "tiny-v3"])
def test_prompts_and_tokens_mixed_give_what_each_gives_alone(
    build: Callable[..., Decoder], family: str
):
    model = random_model(get_preset(family)).requires_grad_(False)
    pool = BlockPool(model.config, 64, block=8, dtype=torch.float32)
    decode = build(model, pool)
    rows = [random_ids(model.config, 30, seed=seed).tolist() for seed in range(3)]
    alone = [model(torch.tensor([row]))[0] for row in rows]
    held = [Held(pool) for _ in rows]
    plan = [(20, 1, 3), (1, 4, 1), (2, 1, 22), (1, 1, 1)]
    done = [0, 0, 0]
    for step in plan:
        fed = [
            Fed(held[i], tuple(rows[i][done[i] : done[i] + n]), "all" if i == 1 else "last")
            for i, n in enumerate(step)
        ]
        for i, found in enumerate(decode.feed(fed)):
            done[i] += step[i]
            first = done[i] - (step[i] if i == 1 else 1)
            expected = alone[i][first : done[i]]
            torch.testing.assert_close(found.logits_TV, expected, atol=3e-4, rtol=3e-4)
            assert held[i].length == done[i]


def test_logits_that_nobody_wants_are_not_made(build: Callable[..., Decoder]):
    model = random_model(get_preset("tiny-v2")).requires_grad_(False)
    pool = BlockPool(model.config, 8, dtype=torch.float32)
    one, other = Held(pool), Held(pool)
    found = build(model, pool).feed([Fed(one, (1, 2, 3), "none"), Fed(other, (4,), "last")])
    assert [len(each.logits_TV) for each in found] == [0, 1]
    assert [one.length, other.length] == [3, 1]


def test_a_prompt_longer_than_a_chunk_is_fed_in_several(
    build: Callable[..., Decoder], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(decoder, "_CHUNK", 8)
    model = random_model(get_preset("tiny-v3")).requires_grad_(False)
    pool = BlockPool(model.config, 64, block=8, dtype=torch.float32)
    ids = random_ids(model.config, 29)
    held = [Held(pool), Held(pool)]
    fed = [Fed(held[0], tuple(ids.tolist()), "all"), Fed(held[1], (5,))]
    found = build(model, pool).feed(fed)
    torch.testing.assert_close(found[0].logits_TV, model(ids.unsqueeze(0))[0], atol=3e-4, rtol=3e-4)
    assert [one.length for one in held] == [29, 1]


def test_where_one_sequence_finds_no_room_none_is_fed(build: Callable[..., Decoder]):
    model = random_model(get_preset("tiny-v2")).requires_grad_(False)
    pool = BlockPool(model.config, 3, block=4, dtype=torch.float32)
    held = [Held(pool), Held(pool)]
    with pytest.raises(RequestError, match="are free; wait until a sequence ends"):
        build(model, pool).feed([Fed(held[0], (1,) * 5), Fed(held[1], (1,) * 8)])
    assert pool.n_free == 3
    assert [one.length for one in held] == [0, 0]


def test_a_model_without_compiled_form_has_the_other_one():
    model = random_model(get_preset("tiny-v2")).double().requires_grad_(False)
    pool = BlockPool(model.config, 4, dtype=torch.float64)
    assert isinstance(build_decoder(model, pool), TorchDecoder)
    with pytest.raises(RequestError, match="does not serve this model"):
        build_decoder(model, pool, "int8")
