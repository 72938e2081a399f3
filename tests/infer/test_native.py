"""The compiled decoder against the model itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from models import random_ids, random_model
from torch import Tensor

from moesaic.config.model import ModelConfig
from moesaic.config.presets import get_preset
from moesaic.errors import CheckpointError, RequestError
from moesaic.infer.blocks import BlockPool, Held
from moesaic.infer.native import NativeDecoder
from moesaic.kernels.groupwise import Bits, dequantise_groups, quantise_groups
from moesaic.kernels.native.build import library
from moesaic.kernels.native.pack import Form
from moesaic.model.residency import Residency, layers_with_experts
from moesaic.model.transformer import Transformer

pytestmark = pytest.mark.skipif(isinstance(library(), str), reason=f"not compiled: {library()}")

SHAPES: dict[str, tuple[str, dict]] = {
    "v1": ("tiny-v1", {}),
    "v1, keys shared by heads": ("tiny-v1", {"num_key_value_heads": 2}),
    "v2": ("tiny-v2", {}),
    "v2, whole vectors only": ("tiny-v2", {"kv_lora_rank": 64, "moe_intermediate_size": 64}),
    "v2, odd widths": ("tiny-v2", {"kv_lora_rank": 40, "moe_intermediate_size": 24}),
    "v2, groups": (
        "tiny-v2",
        {"topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3},
    ),
    "v3": ("tiny-v3", {}),
    "v3, softmax of the chosen": ("tiny-v2", {"norm_topk_prob": True}),
    "no experts": (
        "tiny-v2",
        {
            "n_routed_experts": None,
            "n_shared_experts": None,
            "moe_intermediate_size": None,
            "num_experts_per_tok": None,
        },
    ),
    "tied": ("tiny-v2", {"tie_word_embeddings": True}),
}


@dataclass
class Fed:
    """A decoder and a sequence of its pool."""

    decoder: NativeDecoder
    held: Held

    def __call__(self, ids: Sequence[int]) -> Tensor:
        """Logits of every token, [T, V]."""
        self.held.make_room(len(ids))
        return self.decoder.step(ids, [self.held] * len(ids))[0]


def decoder_of(model: Transformer, form: Form = "weights", dtype=torch.float32) -> NativeDecoder:
    return NativeDecoder(model, BlockPool(model.config, 16, block=8, dtype=dtype), form)


def fed(model: Transformer, form: Form = "weights", dtype=torch.float32) -> Fed:
    decoder = decoder_of(model, form, dtype)
    return Fed(decoder, Held(decoder.pool))


def shaped(name: str) -> ModelConfig:
    preset, changes = SHAPES[name]
    return get_preset(preset).changed(**changes)


@pytest.mark.parametrize("name", SHAPES)
def test_tokens_one_by_one_give_the_logits_of_the_model(name: str):
    model = random_model(shaped(name)).requires_grad_(False)
    ids = random_ids(model.config, 21)
    feed = fed(model)
    got = torch.cat([feed([token]) for token in ids.tolist()])
    torch.testing.assert_close(got, model(ids.unsqueeze(0))[0], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", ["v1", "v2", "v3"])
def test_several_tokens_of_a_sequence_see_each_other(name: str):
    model = random_model(shaped(name)).requires_grad_(False)
    ids = random_ids(model.config, 21)
    feed = fed(model)
    got = torch.cat([feed(ids[:13].tolist()), feed(ids[13:15].tolist()), feed(ids[15:].tolist())])
    torch.testing.assert_close(got, model(ids.unsqueeze(0))[0], atol=2e-4, rtol=2e-4)


def test_sequences_in_one_pass_do_not_see_each_other():
    model = random_model(get_preset("tiny-v3")).requires_grad_(False)
    decoder = decoder_of(model)
    rows = [random_ids(model.config, n, seed=n).tolist() for n in (9, 6, 9)]
    held = [Held(decoder.pool) for _ in rows]
    got: list[list[Tensor]] = [[], [], []]
    for place in range(9):
        going = [i for i, row in enumerate(rows) if place < len(row)]
        for i in going:
            held[i].make_room(1)
        logits, _ = decoder.step([rows[i][place] for i in going], [held[i] for i in going])
        for i, one in zip(going, logits, strict=True):
            got[i].append(one)
    for row, found in zip(rows, got, strict=True):
        alone = model(torch.tensor([row]))[0]
        torch.testing.assert_close(torch.stack(found), alone, atol=2e-4, rtol=2e-4)


def test_only_the_logits_that_are_wanted_come_back():
    model = random_model(get_preset("tiny-v2")).requires_grad_(False)
    ids = random_ids(model.config, 5).tolist()
    decoder = decoder_of(model)
    held = Held(decoder.pool)
    held.make_room(5)
    logits, hidden_TD = decoder.step(ids, [held] * 5, wanted=[4])
    whole = model.hidden_states(torch.tensor([ids]))[0]
    assert logits.shape == (1, model.config.vocab_size)
    torch.testing.assert_close(logits[0], model(torch.tensor([ids]))[0, -1], atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(hidden_TD, whole, atol=2e-4, rtol=2e-4)
    assert held.length == 5


def test_experts_that_are_not_resident_are_not_needed():
    config = get_preset("tiny-v3")
    some = {i: tuple(range(i % 3, config.experts, 5)) for i in layers_with_experts(config)}
    model = random_model(config, residency=Residency(resident=some, allowed=some))
    model.requires_grad_(False)
    ids = random_ids(config, 12)
    got = fed(model)(ids.tolist())
    torch.testing.assert_close(got, model(ids.unsqueeze(0))[0], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", ["v1", "v2", "v3", "v2, odd widths"])
def test_bfloat16_is_as_near_to_float32_as_the_model_in_bfloat16_is(name: str):
    exact = random_model(shaped(name), dtype="bfloat16").requires_grad_(False)
    ids = random_ids(exact.config, 24)
    in_bfloat16 = exact(ids.unsqueeze(0))[0].float()
    got = fed(exact, dtype=torch.bfloat16)(ids.tolist())
    reference = exact.float()(ids.unsqueeze(0))[0]
    # Rounding moves a token's experts here and there, on either side: medians, not maxima.
    ours, theirs = ((x - reference).norm(dim=-1).median() for x in (got, in_bfloat16))
    assert ours < 1.5 * theirs


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_lossless_gives_the_logits_of_the_weights_bit_by_bit(name: str):
    model = random_model(shaped(name), dtype="bfloat16").requires_grad_(False)
    ids = random_ids(model.config, 30).tolist()
    plain, packed = (fed(model, form, torch.bfloat16) for form in ("weights", "lossless"))
    for part in (ids[:9], ids[9:10], ids[10:12], ids[12:]):
        assert torch.equal(packed(part), plain(part))


def test_float32_is_not_held_lossless():
    model = random_model(get_preset("tiny-v2")).requires_grad_(False)
    with pytest.raises(CheckpointError, match="form=lossless holds bfloat16"):
        decoder_of(model, "lossless")


@pytest.mark.parametrize(("form", "bits"), [("int8", 8), ("int4", 4)])
@pytest.mark.parametrize("name", ["v1", "v2", "v2, odd widths", "no experts"])
def test_integers_give_what_the_weights_they_stand_for_give(name: str, form: Form, bits: Bits):
    """What they are multiplied with is rounded to 8 bits: to 1/254 of the largest of its group."""
    model = random_model(shaped(name)).requires_grad_(False)
    ids = random_ids(model.config, 16)
    got = fed(model, form)(ids.tolist())
    for weight_name, weight in model.named_parameters():
        kept = ("embed_tokens", "norm", "mlp.gate.weight", "kv_b_proj")
        if not any(part in weight_name for part in kept):
            stacked = weight if weight.ndim == 3 else weight.unsqueeze(0)
            for one in stacked:
                one.copy_(dequantise_groups(quantise_groups(one, bits)))
    reference = model(ids.unsqueeze(0))[0]
    apart = (got - reference).norm(dim=-1) / reference.norm(dim=-1)
    assert apart.median() < 0.02


def test_positions_beyond_one_block_and_one_piece_of_keys_are_seen():
    model = random_model(get_preset("tiny-v3")).requires_grad_(False)
    ids = random_ids(model.config, 100)
    feed = fed(model)
    got = torch.cat([feed(part.tolist()) for part in ids.split(50)])
    torch.testing.assert_close(got, model(ids.unsqueeze(0))[0], atol=2e-4, rtol=2e-4)


def test_a_model_it_does_not_know_is_refused():
    model = random_model(get_preset("tiny-v2")).double()
    with pytest.raises(
        RequestError, match=r"does not serve this model: its weights are torch\.float64"
    ):
        decoder_of(model)


def test_more_tokens_than_one_pass_takes_give_what_they_give_in_parts():
    model = random_model(get_preset("tiny-v2")).requires_grad_(False)
    ids = random_ids(model.config, 300).tolist()
    got = []
    for sizes in ([300], [150, 150]):
        decoder = NativeDecoder(model, BlockPool(model.config, 40, block=8), "int4")
        held = Held(decoder.pool)
        held.make_room(300)
        parts = torch.tensor(ids).split(sizes)
        got.append(torch.cat([decoder.step(p.tolist(), [held] * len(p))[0] for p in parts]))
    torch.testing.assert_close(got[0], got[1], atol=0, rtol=0)


@pytest.mark.parametrize("token", [-1, 512])
def test_a_token_that_the_model_does_not_have_is_refused(token: int):
    model = random_model(get_preset("tiny-v2").changed(vocab_size=512)).requires_grad_(False)
    decoder = decoder_of(model)
    held = Held(decoder.pool)
    held.make_room(2)
    with pytest.raises(RequestError, match=f"token {token} is not one of the 512 tokens"):
        decoder.step([3, token], [held] * 2)


@pytest.mark.parametrize("preset", ["tiny-v2", "tiny-v3"])
def test_numbers_that_are_none_come_out_as_such(preset: str):
    """Each token still has experts of its own, none twice: no more than there is room for."""
    config = get_preset(preset)
    some = {i: tuple(range(i % 3, config.experts, 5)) for i in layers_with_experts(config)}
    model = random_model(config, residency=Residency(resident=some, allowed=some))
    model.requires_grad_(False)
    ids = random_ids(config, 256).tolist()
    model.state_dict()["model.layers.0.mlp.down_proj.weight"].fill_(torch.nan)
    decoder = NativeDecoder(model, BlockPool(config, 32, block=8, dtype=torch.float32))
    held = Held(decoder.pool)
    held.make_room(256)
    assert decoder.step(ids, [held] * 256)[0].isnan().all()
