"""Multi-head latent attention written from the DeepSeek-V2 paper in float64, a head at a time.

arXiv 2405.04434 eq. 9-19, with the interleaved rotary pairs of the published weights and, for YaRN
(arXiv 2309.00071), the temperatures of the published code. Independent of the package on purpose.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from parity.v1_float64 import Weights, causal, rms_norm
from torch import Tensor


def latent(x: Tensor, weights: Weights, name: str, config: Mapping[str, Any]) -> Tensor:
    """Latent attention of a layer on normalised hidden states of one sequence, [S, D]."""
    unrotated, rotated = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    if config["q_lora_rank"]:
        compressed = x @ weights[f"{name}.q_a_proj.weight"].T
        compressed = rms_norm(compressed, weights[f"{name}.q_a_layernorm.weight"], 1e-6)
        queries = compressed @ weights[f"{name}.q_b_proj.weight"].T
    else:
        queries = x @ weights[f"{name}.q_proj.weight"].T
    joint = x @ weights[f"{name}.kv_a_proj_with_mqa.weight"].T
    rank = config["kv_lora_rank"]
    compressed = rms_norm(joint[:, :rank], weights[f"{name}.kv_a_layernorm.weight"], 1e-6)
    expanded = compressed @ weights[f"{name}.kv_b_proj.weight"].T
    shared_key = rotate_neighbours(joint[:, rank:], config)
    outs = []
    heads = config["num_attention_heads"]
    for q, kv in zip(queries.chunk(heads, dim=1), expanded.chunk(heads, dim=1), strict=True):
        query = torch.cat((q[:, :unrotated], rotate_neighbours(q[:, unrotated:], config)), dim=1)
        key = torch.cat((kv[:, :unrotated], shared_key), dim=1)
        scale = (unrotated + rotated) ** -0.5 * temperature(config, "mscale_all_dim") ** 2
        outs.append(causal(query, key, kv[:, unrotated:], scale))
    return torch.cat(outs, dim=1) @ weights[f"{name}.o_proj.weight"].T


def rotate_neighbours(x: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Rotary position for [S, width]: pair i is x_{2i} and x_{2i+1}."""
    positions, width = x.shape
    length = temperature(config, "mscale") / temperature(config, "mscale_all_dim")
    turned = torch.empty_like(x)
    for position in range(positions):
        for i in range(width // 2):
            angle = torch.tensor(position * frequency(i, width, config), dtype=torch.float64)
            a, b = x[position, 2 * i], x[position, 2 * i + 1]
            turned[position, 2 * i] = (a * angle.cos() - b * angle.sin()) * length
            turned[position, 2 * i + 1] = (b * angle.cos() + a * angle.sin()) * length
    return turned


def frequency(i: int, width: int, config: Mapping[str, Any]) -> float:
    """Radians per position of pair i, between the natural and the stretched one under YaRN."""
    theta, scaling = config["rope_theta"], config["rope_scaling"]
    natural = theta ** (-2 * i / width)
    if scaling is None:
        return natural
    context = scaling["original_max_position_embeddings"]

    def pair_that_turns(rotations: float) -> float:
        return width * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_that_turns(scaling["beta_fast"])), 0)
    high = min(math.ceil(pair_that_turns(scaling["beta_slow"])), width - 1)
    stretched = min(max((i - low) / max(high - low, 0.001), 0.0), 1.0)
    return natural * (1 - stretched) + natural / scaling["factor"] * stretched


def temperature(config: Mapping[str, Any], weight: str) -> float:
    """0.1 · mscale · ln(factor) + 1; a weight of 0 leaves 1."""
    scaling = config["rope_scaling"]
    return 1.0 if scaling is None else 0.1 * scaling[weight] * math.log(scaling["factor"]) + 1
