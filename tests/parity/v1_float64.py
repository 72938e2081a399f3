"""DeepSeekMoE-16B written from its paper in float64: a token, a head and an expert at a time.

Independent of the package on purpose: it knows the published configuration keys and tensor names,
with the experts of a layer stacked, and nothing else.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
Attend = Callable[[Tensor, Weights, str, Mapping[str, Any]], Tensor]


def logits(
    ids: list[int], weights: Weights, config: Mapping[str, Any], attend: Attend | None = None
) -> Tensor:
    """Logits of the next token at every position of one sequence, [S, V].

    Args:
        ids: the sequence.
        weights: float64, by published name.
        config: the published ``config.json``.
        attend: attention of a layer on normalised hidden states; None for multi-head attention.
    """
    eps = config["rms_norm_eps"]
    stream = weights["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        normed = rms_norm(stream, weights[f"{name}.input_layernorm.weight"], eps)
        stream = stream + (attend or multi_head)(normed, weights, f"{name}.self_attn", config)
        normed = rms_norm(stream, weights[f"{name}.post_attention_layernorm.weight"], eps)
        is_dense = layer < config["first_k_dense_replace"] or layer % config["moe_layer_freq"]
        forward = feed_forward if is_dense else mixture
        stream = stream + forward(normed, weights, f"{name}.mlp", config)
    normed = rms_norm(stream, weights["model.norm.weight"], eps)
    head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
    return normed @ weights[f"{head}.weight"].T


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square normalisation of the last axis."""
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def rotate(x: Tensor, theta: float) -> Tensor:
    """Rotary position (arXiv 2104.09864) for [S, width]: pair i is x_i and x_{i + width/2}."""
    positions, width = x.shape
    turned = torch.empty_like(x)
    for position in range(positions):
        for i in range(width // 2):
            angle = torch.tensor(position * theta ** (-2 * i / width), dtype=torch.float64)
            a, b = x[position, i], x[position, i + width // 2]
            turned[position, i] = a * angle.cos() - b * angle.sin()
            turned[position, i + width // 2] = b * angle.cos() + a * angle.sin()
    return turned


def causal(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Softmax attention of one head over the positions up to each, [S, value width]."""
    rows = []
    for position in range(len(queries)):
        scores = keys[: position + 1] @ queries[position] * scale
        shares = scores.exp() / scores.exp().sum()
        rows.append(shares @ values[: position + 1])
    return torch.stack(rows)


def multi_head(x: Tensor, weights: Weights, name: str, config: Mapping[str, Any]) -> Tensor:
    """Multi-head attention; neighbouring query heads share a key-value head."""
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    width, theta = config["hidden_size"] // heads, config["rope_theta"]
    q, k, v = (x @ weights[f"{name}.{part}_proj.weight"].T for part in "qkv")
    outs = []
    for head in range(heads):
        shared = head * groups // heads
        own, common = (slice(h * width, (h + 1) * width) for h in (head, shared))
        query, key = rotate(q[:, own], theta), rotate(k[:, common], theta)
        outs.append(causal(query, key, v[:, common], width**-0.5))
    return torch.cat(outs, dim=1) @ weights[f"{name}.o_proj.weight"].T


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """The gated feed-forward of arXiv 2002.05202 eq. 6."""
    gated = x @ gate.T
    return (gated / (1 + (-gated).exp()) * (x @ up.T)) @ down.T


def feed_forward(x: Tensor, weights: Weights, name: str, _: Mapping[str, Any]) -> Tensor:
    """The feed-forward of a dense layer, or the shared experts as one of their joint width."""
    return swiglu(x, *(weights[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down")))


def mixture(x: Tensor, weights: Weights, name: str, config: Mapping[str, Any]) -> Tensor:
    """Shared and routed experts. arXiv 2401.06066 eq. 9-11; gate values as `gate_values` says."""
    width = config["moe_intermediate_size"]
    out = []
    for token in x:
        total = torch.zeros_like(token)
        scores = torch.softmax(weights[f"{name}.gate.weight"] @ token, dim=0)
        for expert, value in gate_values(scores, config):
            gate_up = weights[f"{name}.experts.gate_up_proj"][expert]
            down = weights[f"{name}.experts.down_proj"][expert]
            total = total + value * swiglu(token, gate_up[:width], gate_up[width:], down)
        out.append(total)
    routed = torch.stack(out)
    if not config["n_shared_experts"]:
        return routed
    return routed + feed_forward(x, weights, f"{name}.shared_experts", config)


def gate_values(scores: Tensor, config: Mapping[str, Any]) -> list[tuple[int, Tensor]]:
    """The chosen experts and their gate values, by the rule of the published code of V1 and V2.

    Only gate values that are not normalised are scaled. Experts outside the best groups, by their
    best expert, are not chosen (arXiv 2405.04434 section 2.2.2).
    """
    open_to_choice = range(len(scores))
    if config["topk_method"] == "group_limited_greedy":
        size = len(scores) // config["n_group"]
        groups = sorted(range(config["n_group"]), key=lambda g: -scores[g * size :][:size].max())
        best = groups[: config["topk_group"]]
        open_to_choice = [expert for expert in open_to_choice if expert // size in best]
    ranked = sorted(open_to_choice, key=lambda expert: -scores[expert])
    chosen = ranked[: config["num_experts_per_tok"]]
    if config["norm_topk_prob"]:
        return [(expert, scores[expert] / scores[chosen].sum()) for expert in chosen]
    return [(expert, scores[expert] * config["routed_scaling_factor"]) for expert in chosen]
