"""Bytes of frozen experts in every form, as the code holds them."""

from dataclasses import replace
from typing import Literal, get_args

import pytest
import torch
from models import random_model

from moesaic.config.esft import Hold, HoldLinears
from moesaic.config.model import ModelConfig
from moesaic.config.presets import (
    DEEPSEEK_MOE_2B,
    DEEPSEEK_V2,
    DEEPSEEK_V2_LITE,
    DEEPSEEK_V3,
    SMALL_V2,
    TINY_V2,
)
from moesaic.errors import ConfigError
from moesaic.kernels import groupwise
from moesaic.model.quantised import QuantisedExperts, Scratch, quantise_linears_
from moesaic.planner import holding
from moesaic.planner.holding import frozen_bytes, rest_bytes, room_bytes
from moesaic.planner.params import params
from moesaic.planner.precision import PRECISIONS, STATE_BLOCK
from moesaic.train import moments

BFLOAT16, MIXED = PRECISIONS["bfloat16"], PRECISIONS["mixed"]
NATURAL = params(DEEPSEEK_V2_LITE, 8, 56)
LAYER = 64 * 8_650_752  # parameters of all experts of one layer


def natural(hold: Hold):
    return params(DEEPSEEK_V2_LITE, 8, 56, hold=hold)


@pytest.mark.parametrize(("hold", "bits"), [("int8", 8), ("int4", 4)])
@pytest.mark.parametrize(
    "config", [TINY_V2, SMALL_V2, DEEPSEEK_V2_LITE, DEEPSEEK_V2, DEEPSEEK_V3, DEEPSEEK_MOE_2B]
)
def test_integers_take_as_many_bytes_as_the_code_holds(
    config: ModelConfig, hold: Hold, bits: Literal[4, 8]
):
    scratch, others = Scratch(torch.bfloat16, "meta"), config.experts - 8
    width, inner = config.hidden_size, config.moe_intermediate_size or 0
    held = QuantisedExperts(8, others, width, inner, bits, scratch)
    size = params(config, 8, others, hold=hold)
    assert frozen_bytes(size, BFLOAT16) == held.bytes * len(config.moe_layers)
    assert room_bytes(size, BFLOAT16) == scratch.bytes


@pytest.mark.parametrize("hold", ["int8", "int4"])
def test_room_for_integers_is_a_small_part_of_a_layer(hold: Hold):
    assert room_bytes(natural(hold), BFLOAT16) == 2 * 2**26  # bfloat16
    assert room_bytes(natural(hold), BFLOAT16) < 2 * LAYER / 8


@pytest.mark.parametrize(("hold", "bits"), [("int8", 8), ("int4", 4)])
def test_integers_of_wide_experts_take_their_bits_and_a_share_of_a_scale(hold: Hold, bits: int):
    expected = NATURAL.frozen * groupwise.bits_per_weight(bits) / 8
    assert frozen_bytes(natural(hold), BFLOAT16) == expected


@pytest.mark.parametrize(("hold", "bits"), [("int8", 8), ("int4", 4)])
def test_linear_layers_as_integers_take_as_many_bytes_as_the_code_holds(
    hold: HoldLinears, bits: Literal[4, 8]
):
    model = random_model(TINY_V2).requires_grad_(False)
    before = sum(p.numel() for p in model.parameters())
    names = quantise_linears_(model, bits, ("attention", "dense", "shared"))
    assert set(holding.LINEAR_ROLES) == {"attention", "dense", "shared"}
    held = sum(model.get_submodule(name).stored.bytes for name in names)  # pyright: ignore
    rest = before - sum(model.get_submodule(name).weight.numel() for name in names)  # pyright: ignore
    size = params(TINY_V2, 8)
    rest -= size.routed
    assert rest_bytes(replace(size, hold_linears=hold), BFLOAT16) == held + 2 * rest
    assert rest_bytes(size, BFLOAT16) == 2 * (size.backbone + size.shared)


def test_a_parked_embedding_takes_nothing_on_the_device():
    parked = replace(NATURAL, park_embedding=True)
    table = NATURAL.roles["embedding"]
    assert rest_bytes(NATURAL, BFLOAT16) - rest_bytes(parked, BFLOAT16) == 2 * table


def test_constants_are_those_of_the_kernels():
    assert holding.GROUP == groupwise.GROUP
    assert holding.SCALE_BITS == groupwise.SCALE_BITS
    assert STATE_BLOCK == moments.BLOCK


def test_weights_take_the_dtype_of_the_products_and_a_copy_of_trained_ones_in_another():
    assert frozen_bytes(NATURAL, BFLOAT16) == frozen_bytes(NATURAL, MIXED) == 2 * NATURAL.frozen
    assert room_bytes(NATURAL, BFLOAT16) == 0
    assert room_bytes(NATURAL, MIXED) == 2 * NATURAL.trained


@pytest.mark.parametrize("hold", ["cpu", "disk"])
def test_streamed_experts_take_two_layers_on_the_device(hold: Hold):
    assert frozen_bytes(natural(hold), BFLOAT16) == 0
    assert room_bytes(natural(hold), BFLOAT16) == 2 * 2 * LAYER
    assert natural(hold).held == params(DEEPSEEK_V2_LITE, 8).held


@pytest.mark.parametrize("hold", get_args(Hold))
def test_a_masked_slice_needs_no_room(hold: Hold):
    assert room_bytes(params(DEEPSEEK_V2_LITE, 8), BFLOAT16) == 0
    if hold != "weights":
        with pytest.raises(ConfigError, match="keep some experts, or remove it"):
            params(DEEPSEEK_V2_LITE, 8, hold=hold)
