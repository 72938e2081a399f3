"""A model and its caches as the compiled decoder is told of them."""

from typing import Any

import torch
from torch import Tensor, nn

from moesaic.config.model import ModelConfig
from moesaic.errors import RequestError
from moesaic.infer.blocks import BlockPool
from moesaic.infer.held import HeldExperts, HeldLinear, bringer_of
from moesaic.kernels.native.pack import FLOAT_FORMATS, Form, Matrix, Rows, as_rows
from moesaic.kernels.native.structures import NEED, Layer, Model
from moesaic.model.attention import MultiHeadAttention
from moesaic.model.block import Block
from moesaic.model.experts import Experts
from moesaic.model.linear import Linear
from moesaic.model.mla import LatentAttention
from moesaic.model.moe import MoE
from moesaic.model.rope import softmax_scale
from moesaic.model.router import Router
from moesaic.model.transformer import Transformer

_MOST_SUMS = 2**30
"""Bytes that the sums of attention may take: they grow with threads, heads and tokens."""


class Description:
    """What `Model` of model.h points to; weights held as they are stay where the model has them."""

    def __init__(self, model: Transformer, pool: BlockPool, form: Form, need: Any = None) -> None:
        """Describe a model.

        Args:
            model: on a CPU, in float32 or bfloat16.
            pool: where its caches lie.
            form: how to hold its matrices; embedding, norms and routers stay as they are, and so
                do those that are `Rows` already, and ``kv_b_proj`` where it would be rounded.
            need: ``Need`` of model.h, for a model with a cache of experts.

        Raises:
            CheckpointError: if its weights cannot be held in that form: see `as_rows`.
            RequestError: if the compiled functions do not know everything in the model.
        """
        check_served(model, pool)
        self._pool, self._model = pool, model
        self._form: Form = form
        self._keep: list[Any] = []
        config = model.config
        blocks = [block for block in model.model.layers if isinstance(block, Block)]
        layers = (Layer * len(blocks))(*(self._layer(*each) for each in enumerate(blocks)))
        longest = min(config.max_position_embeddings, pool.n_blocks * pool.block)
        self.n_positions = longest
        """Of which the compiled functions know the angles."""
        cosines, sines = self._angles(longest)
        attention = blocks[0].self_attn
        gates = [g for moe in model.moe_layers().values() if isinstance(g := moe.gate, Router)]
        self.model = Model(
            layers=layers,
            cosines=cosines,
            sines=sines,
            embedding=self._rows(as_rows(model.model.embed_tokens.weight, "weights")),
            head=self._matrix(model.lm_head or model.model.embed_tokens),
            **_sizes(config, gates[0] if gates else None),
            cache_format=FLOAT_FORMATS[pool.dtype],
            block=pool.block,
            softmax_scale=softmax_scale(config),
            norm_eps=blocks[0].input_layernorm.eps,
            latent_eps=(
                attention.kv_a_layernorm.eps if isinstance(attention, LatentAttention) else 0.0
            ),
            need=NEED() if need is None else need,
        )
        self._keep += [layers, need]

    def _layer(self, index: int, layer: Block) -> Layer:
        attention = layer.self_attn
        described = Layer(
            input_norm=self._floats(layer.input_layernorm.weight),
            post_norm=self._floats(layer.post_attention_layernorm.weight),
            output=self._matrix(attention.o_proj),
            cache=self._pool.layers[index].data_ptr(),
        )
        if isinstance(attention, LatentAttention):
            self._describe_latent(described, attention)
        else:
            assert isinstance(attention, MultiHeadAttention)
            described.query = self._matrix(attention.q_proj)
            described.key = self._matrix(attention.k_proj)
            described.value = self._matrix(attention.v_proj)
        mlp = layer.mlp
        if isinstance(mlp, MoE):
            self._describe_router(described, mlp)
            self._describe_experts(described, mlp.experts, index)
        dense = mlp.shared_experts if isinstance(mlp, MoE) else mlp
        if dense is not None:
            described.gate = self._matrix(dense.gate_proj)
            described.up = self._matrix(dense.up_proj)
            described.down = self._matrix(dense.down_proj)
        return described

    def _describe_latent(self, described: Layer, attention: LatentAttention) -> None:
        described.key = self._matrix(attention.kv_a_proj_with_mqa)
        described.value = self._expansion(attention.kv_b_proj)
        described.latent_norm = self._floats(attention.kv_a_layernorm.weight)
        if attention.has_query_latent:
            described.query = self._matrix(attention.q_a_proj)
            described.query_up = self._matrix(attention.q_b_proj)
            described.query_norm = self._floats(attention.q_a_layernorm.weight)
        else:
            described.query = self._matrix(attention.q_proj)

    def _describe_router(self, described: Layer, moe: MoE) -> None:
        gate = moe.gate
        assert isinstance(gate, Router)
        described.router = self._rows(as_rows(gate.weight.float(), "weights"))
        if gate.e_score_correction_bias is not None:
            described.bias = self._floats(gate.e_score_correction_bias)
        if gate.allowed is not None:
            described.allowed = self._address(gate.allowed.to(torch.uint8))

    def _describe_experts(self, described: Layer, experts: nn.Module, index: int) -> None:
        if isinstance(experts, HeldExperts):
            stacks, slots = (experts.rows_in, experts.rows_out), experts.slot_of_expert
            if experts.cache is not None:
                slots = experts.cache.slots[index]
        else:
            assert isinstance(experts, Experts)
            weights = experts.gate_up_proj, experts.down_proj
            stacks = tuple(as_rows(weight, self._form) for weight in weights)
            slots = experts.slot_of_expert
        described.experts_in, described.experts_out = map(self._rows, stacks)
        if slots is not None:
            described.slots = self._address(slots.to(torch.int32))

    def _expansion(self, linear: nn.Module) -> Matrix:
        """``kv_b_proj``, of which sums of rows are taken, too: it is never made integers."""
        if isinstance(linear, HeldLinear):
            return self._rows(linear.rows)
        assert isinstance(linear, Linear)
        return self._rows(
            as_rows(linear.weight, "lossless" if self._form == "lossless" else "weights")
        )

    def _matrix(self, linear: nn.Module) -> Matrix:
        assert isinstance(linear, Linear | HeldLinear | nn.Embedding)
        if isinstance(linear, HeldLinear):
            return self._rows(linear.rows)
        return self._rows(as_rows(linear.weight, self._form))

    def _rows(self, rows: Rows) -> Matrix:
        self._keep.append(rows)
        return rows.matrix()

    def _floats(self, values: Tensor) -> int:
        return self._address(values.detach().float())

    def _address(self, values: Tensor) -> int:
        self._keep.append(values.contiguous())
        return self._keep[-1].data_ptr()

    def _angles(self, positions: int) -> tuple[int, int]:
        """Cosines and sines of so many positions, float32."""
        rotation = self._model.rope(torch.arange(positions).unsqueeze(0))
        return self._floats(rotation.cos.flatten(0, -2)), self._floats(rotation.sin.flatten(0, -2))


def check_served(model: Transformer, pool: BlockPool) -> None:
    """See that the compiled functions know everything in a model and its caches.

    Raises:
        RequestError: if they do not.
    """
    why = None
    weight = model.model.embed_tokens.weight
    if weight.device.type != "cpu":
        why = f"its weights are on {weight.device.type}"
    elif weight.dtype not in FLOAT_FORMATS:
        why = f"its weights are {weight.dtype}"
    elif pool.dtype not in FLOAT_FORMATS:
        why = f"its cache is {pool.dtype}"
    for moe in model.moe_layers().values():
        experts: nn.Module = moe.experts
        if not isinstance(moe.gate, Router):
            why = "it routes by hashing"
        elif isinstance(experts, Experts) and {experts.frozen, experts.lora} != {None}:
            why = "some experts are held apart, or have adapters"
    if why is not None:
        raise RequestError(f"the compiled decoder does not serve this model: {why}")


def most_tokens(model: Transformer, most: int) -> int:
    """How many tokens, of so many, can be in a layer at a time: with all their experts there, and
    with room for the sums that every thread has of every head."""
    config = model.config
    width = config.kv_lora_rank if config.kv_lora_rank is not None else config.value_dim
    of_token = torch.get_num_threads() * config.num_attention_heads * (width + 2) * 4
    most = max(1, min(most, _MOST_SUMS // of_token))
    cache, chosen = bringer_of(model), model.config.num_experts_per_tok or 1
    if cache is None or cache.n_slots >= model.config.experts:
        return most
    return max(1, min(most, cache.n_slots // chosen))


def _sizes(config: ModelConfig, gate: Router | None) -> dict[str, int | float]:
    """Widths and counts, under their names in model.h."""
    return {
        "hidden": config.hidden_size,
        "heads": config.num_attention_heads,
        "key_heads": config.num_key_value_heads,
        "head_width": 0 if config.is_latent else config.qk_head_dim,
        "unrotated": config.qk_nope_head_dim or 0,
        "rotated": config.rope_dim,
        "value_width": config.value_dim,
        "latent": config.kv_lora_rank or 0,
        "is_latent": config.is_latent,
        "is_interleaved": config.rope_interleave,
        "experts": 0 if gate is None else config.experts,
        "chosen": 0 if gate is None else gate.n_chosen,
        "groups": 1 if gate is None else gate.n_groups,
        "kept_groups": 1 if gate is None else gate.kept_groups,
        "is_sigmoid": gate is not None and gate.scoring_func == "sigmoid",
        "normalises": gate is not None and gate.norm_topk_prob,
        "gate_scale": 1.0 if gate is None else gate.scale,
    }
