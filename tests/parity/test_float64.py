"""V1, which transformers does not have, and V2 against the papers' formulas in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import gradients, random_ids, random_model
from parity.v1_float64 import Attend, logits
from parity.v2_float64 import latent

from moesaic.config.model import ModelConfig
from moesaic.config.published import published_config

pytestmark = pytest.mark.parity

YARN = {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16}
UNGROUPED = {"topk_method": "greedy", "n_group": None, "topk_group": None}
NORMALISED = {"norm_topk_prob": True}

V1: dict[str, dict[str, Any]] = {
    "published": {},
    "normalised gate values": NORMALISED,
    "two key-value heads": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "one key-value head": {"num_attention_heads": 4, "num_key_value_heads": 1},
    "no shared experts": {"n_shared_experts": None},
    "experts in every second layer": {"moe_layer_freq": 2, "first_k_dense_replace": 0},
    "tied": {"tie_word_embeddings": True},
    "GShard": {**NORMALISED, "num_experts_per_tok": 2, "n_shared_experts": None},
    "Switch": {"num_experts_per_tok": 1, "n_shared_experts": None},
    "other theta and epsilon": {"rope_theta": 500.0, "rms_norm_eps": 1e-2},
}
V2: dict[str, dict[str, Any]] = {
    "greedy": UNGROUPED,
    "groups": {},
    "normalised gate values are not scaled": NORMALISED,
    "normalised, no groups": {**UNGROUPED, **NORMALISED},
    "compressed queries": {"q_lora_rank": 12},
    "no YaRN": {"rope_scaling": None},
    "unequal mscales": {"rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}},
    "only mscale": {"rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.0}},
}


def assert_equal_to_formulas(config: ModelConfig, attend: Attend | None) -> None:
    config = config.changed(initializer_range=0.2)
    model = random_model(config)
    ids_BS = random_ids(config, 1, 20)
    ours_BSV = model(ids_BS)

    weights = {
        name: tensor.detach().double().requires_grad_()
        for name, tensor in model.state_dict().items()
    }
    theirs = logits(ids_BS[0].tolist(), weights, published_config(config, "float32"), attend)
    torch.testing.assert_close(ours_BSV[0].double(), theirs, atol=1e-5, rtol=0)

    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(20, config.vocab_size, generator=generator)
    ours_BSV[0].backward(upstream)
    theirs.backward(upstream.double())
    for name, gradient in gradients(model).items():
        their = weights[name].grad
        assert their is not None
        assert (gradient - their).abs().max() <= 1e-5 * their.abs().max(), name


@pytest.mark.parametrize("changes", V1.values(), ids=V1.keys())
def test_v1_equals_the_published_formulas(
    tiny_config: Callable[..., ModelConfig], changes: dict[str, Any]
):
    assert_equal_to_formulas(tiny_config("v1", **changes), None)


@pytest.mark.parametrize("changes", V2.values(), ids=V2.keys())
def test_v2_equals_the_published_formulas(
    tiny_config: Callable[..., ModelConfig], changes: dict[str, Any]
):
    assert_equal_to_formulas(tiny_config("v2", **changes), latent)
