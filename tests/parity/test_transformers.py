"""Logits and gradients of V2 and V3 equal those of transformers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import gradients, random_ids, random_model
from parity.twin import transformers_twin, twin_gradients
from torch.nn import functional as F

from moesaic.config.model import ModelConfig

pytestmark = pytest.mark.parity

LARGEST_ERROR = 1e-5
"""Of logits, which are of order one, and of a gradient's entries over the largest of them: the two
implementations add up in different orders, in float32."""

YARN = {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16}
SLOW = {**YARN, "original_max_position_embeddings": 64, "beta_fast": 1.2, "beta_slow": 0.1}
ROPES: dict[str, Any] = {
    "no scaling": None,
    "both mscales": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    "unequal mscales": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5},
}
CHOICES: dict[str, tuple[str, dict[str, Any]]] = {
    "v2 greedy": ("v2", {"topk_method": "greedy", "n_group": None, "topk_group": None}),
    "v2 groups": ("v2", {}),
    "v2 one group": ("v2", {"n_group": 1, "topk_group": 1}),
    "v3 groups": ("v3", {}),
    "v3 one group": ("v3", {"n_group": 1, "topk_group": 1}),
    "v3 all groups": ("v3", {"n_group": 2, "topk_group": 2}),
    "v3 not normalised": ("v3", {"norm_topk_prob": False}),
}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "v2 tied": ("v2", {"tie_word_embeddings": True}),
    "v3 tied": ("v3", {"tie_word_embeddings": True}),
    "v3 halves rotated": ("v3", {"rope_interleave": False}),
    "v3 wide values": ("v3", {"v_head_dim": 20}),
    "v2 narrow values": ("v2", {"v_head_dim": 2}),
    "v2 other theta": ("v2", {"rope_theta": 500.0, "rope_scaling": None}),
    "v2 many frequencies": ("v2", {"qk_rope_head_dim": 16, "rope_scaling": SLOW}),
    "v3 many frequencies": ("v3", {"qk_rope_head_dim": 16, "rope_scaling": SLOW}),
    # The slowest pair turns more than once, so that no frequency is stretched in full.
    "v2 small theta": ("v2", {"qk_rope_head_dim": 16, "rope_scaling": SLOW, "rope_theta": 10.0}),
    "v3 small theta": ("v3", {"qk_rope_head_dim": 16, "rope_scaling": SLOW, "rope_theta": 10.0}),
    "v3 all experts": ("v3", {"first_k_dense_replace": 0}),
    "v2 no experts": ("v2", {"first_k_dense_replace": 3}),
    "v3 one shared": ("v3", {"n_shared_experts": 1}),
    "v2 one chosen": ("v2", {"num_experts_per_tok": 1}),
    "v3 large epsilon": ("v3", {"rms_norm_eps": 1e-2}),
    "v3 odd experts": ("v3", {"n_routed_experts": 15, "n_group": 5, "moe_intermediate_size": 7}),
}

Build = Callable[..., ModelConfig]


def assert_equal_to_transformers(config: ModelConfig) -> None:
    config = config.changed(num_nextn_predict_layers=0, initializer_range=0.2)
    model = random_model(config)
    twin = transformers_twin(model)
    ids_BS, labels_BS = random_ids(config, 2, 40), random_ids(config, 2, 40, seed=1)
    logits_BSV, theirs_BSV = model(ids_BS), twin(ids_BS, use_cache=False).logits
    assert 0.5 < logits_BSV.std() < 5
    torch.testing.assert_close(logits_BSV, theirs_BSV, atol=LARGEST_ERROR, rtol=0)

    sums = model.loss(ids_BS, labels_BS)
    (sums.next_token / sums.tokens).backward()
    F.cross_entropy(theirs_BSV.flatten(0, 1), labels_BS.flatten()).backward()
    ours, theirs = gradients(model), twin_gradients(twin)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        error = (ours[name] - gradient).abs().max() / gradient.abs().max()
        assert error <= LARGEST_ERROR, name


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES.keys())
@pytest.mark.parametrize("q_lora_rank", [None, 12])
@pytest.mark.parametrize(("family", "choice"), CHOICES.values(), ids=CHOICES.keys())
def test_logits_and_gradients_equal_transformers(
    tiny_config: Build,
    family: str,
    choice: dict[str, Any],
    q_lora_rank: int | None,
    rope: dict[str, Any] | None,
):
    assert_equal_to_transformers(
        tiny_config(
            family,
            q_lora_rank=q_lora_rank,
            rope_scaling=rope,
            **choice,
        )
    )


@pytest.mark.parametrize(("family", "shape"), SHAPES.values(), ids=SHAPES.keys())
def test_unusual_shapes_equal_transformers(tiny_config: Build, family: str, shape: dict[str, Any]):
    assert_equal_to_transformers(tiny_config(family, **shape))
