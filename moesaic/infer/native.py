"""`NativeDecoder`: a model on a CPU, fed a few tokens at a time by one compiled call.

Letters: T tokens fed, D hidden, V vocabulary, P positions, R rotary width.
"""

from collections.abc import Sequence
from ctypes import pointer
from typing import Any

import torch
from torch import Tensor

from moesaic.config.model import ModelConfig
from moesaic.errors import RequestError
from moesaic.infer.blocks import BlockPool, Held
from moesaic.kernels.native.pack import FLOAT_FORMATS, Form, Matrix, as_matrix
from moesaic.kernels.native.structures import Layer, Model, Pass, native_library
from moesaic.model.attention import MultiHeadAttention
from moesaic.model.block import Block
from moesaic.model.linear import Linear
from moesaic.model.mla import LatentAttention
from moesaic.model.moe import MoE
from moesaic.model.mtp import PredictionModule
from moesaic.model.norm import RMSNorm
from moesaic.model.rope import softmax_scale
from moesaic.model.router import Router
from moesaic.model.transformer import Transformer


class NativeDecoder:
    """Runs tokens of any sequences through a model whose caches lie in a pool.

    The numbers are those of `Transformer`, but sums and what goes from layer to layer stay in
    float32, whatever the weights are; with integer weights, what they are multiplied with is
    rounded to 8 bits in groups, too. Weights held as they are stay where the model has them, and
    must not be replaced meanwhile.
    """

    def __init__(self, model: Transformer, pool: BlockPool, form: Form = "weights") -> None:
        """Describe a model to the compiled functions.

        Args:
            model: on a CPU, in float32 or bfloat16.
            pool: where its caches lie.
            form: how to hold its matrices; embedding, norms, routers and ``kv_b_proj`` stay as
                they are.

        Raises:
            RequestError: if there is no compiled form, or not of this model.
        """
        self._library = native_library()
        check_served(model)
        self.model, self.pool = model, pool
        self._form: Form = form
        self._keep: list[Any] = []
        config = model.config
        blocks = [block for block in model.model.layers if isinstance(block, Block)]
        layers = (Layer * len(blocks))(*(self._layer(*each) for each in enumerate(blocks)))
        cosines, sines = self._angles(config.max_position_embeddings)
        attention = blocks[0].self_attn
        gates = [g for moe in model.moe_layers().values() if isinstance(g := moe.gate, Router)]
        self._described = Model(
            layers=layers,
            cosines=cosines,
            sines=sines,
            head=as_matrix(model.head_weight, form, self._keep),
            **_sizes(config, gates[0] if gates else None),
            cache_format=FLOAT_FORMATS[pool.dtype],
            block=pool.block,
            softmax_scale=softmax_scale(config),
            norm_eps=blocks[0].input_layernorm.eps,
            latent_eps=(
                attention.kv_a_layernorm.eps if isinstance(attention, LatentAttention) else 0.0
            ),
        )
        self._keep.append(layers)

    @property
    def most_tokens(self) -> int:
        """How many tokens one call takes."""
        return self._library.moesaic_most_tokens()

    def step(
        self, ids: Sequence[int], owners: Sequence[Held], wanted: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Feed tokens; those of one sequence follow each other, and its cache.

        Args:
            ids: of the tokens.
            owners: the sequence of each; rooms must have been made before.
            wanted: indices of the tokens whose logits are asked for; None for all.

        Returns:
            Logits float32 [wanted, V], and the normed hidden states float32 [T, D].
        """
        x_TD = self.model.model.embed_tokens.weight.detach()[list(ids)].float()
        depth = self.model.config.num_hidden_layers
        norm = self.model.model.norm.weight
        return self.run(x_TD, owners, range(depth), norm, wanted)

    def draft(
        self,
        previous_TD: Tensor,
        ids: Sequence[int],
        owners: Sequence[Held],
        wanted: Sequence[int] | None = None,
    ) -> Tensor:
        """Feed the first prediction module; logits of the token after the next one.

        Args:
            previous_TD: hidden states of some tokens, as `step` gives them.
            ids: the token after each.
            owners: what each one's sequence holds of the module.
            wanted: see `step`.
        """
        depth = self.model.config.num_hidden_layers
        module = self.model.model.layers[depth]
        assert isinstance(module, PredictionModule)
        embedded_TD = self.model.model.embed_tokens.weight.detach()[list(ids)]
        x_TD = module.join(previous_TD.to(embedded_TD.dtype), embedded_TD).float()
        norm = module.shared_head["norm"]
        assert isinstance(norm, RMSNorm)
        return self.run(x_TD, owners, range(depth, depth + 1), norm.weight, wanted)[0]

    def run(
        self,
        x_TD: Tensor,
        owners: Sequence[Held],
        layers: range,
        norm: Tensor,
        wanted: Sequence[int] | None = None,
        advance: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Some layers, a norm and the head. See `step`.

        Args:
            x_TD: float32, the input of the first layer; it is overwritten by the hidden states.
            owners: the sequence of each token.
            layers: which.
            norm: weight of the last norm.
            wanted: tokens whose logits are asked for.
            advance: whether the sequences count the tokens as held afterwards.
        """
        tables, rows, positions = _placed(owners)
        asked = list(range(len(owners)) if wanted is None else wanted)
        arrays = [torch.tensor(each, dtype=torch.int32) for each in (positions, rows, asked)]
        weight = norm.detach().float().contiguous()
        logits = torch.empty(len(asked), self._described.head.rows)
        assert x_TD.is_contiguous()
        assert x_TD.dtype == torch.float32
        told = Pass(
            *(each.data_ptr() for each in (arrays[0], arrays[1], tables, arrays[2])),
            weight.data_ptr(),
            x_TD.data_ptr(),
            logits.data_ptr(),
            len(owners),
            len(asked),
            tables.shape[1],
            layers.start,
            layers.stop,
            torch.get_num_threads(),
        )
        self._library.moesaic_pass(pointer(self._described), pointer(told))
        if advance:
            for owner in owners:
                owner.length += 1
        return logits, x_TD

    def _layer(self, index: int, layer: Block) -> Layer:
        attention = layer.self_attn
        described = Layer(
            input_norm=self._floats(layer.input_layernorm.weight),
            post_norm=self._floats(layer.post_attention_layernorm.weight),
            output=self._matrix(attention.o_proj),
            cache=self.pool.layers[index].data_ptr(),
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
            self._describe_experts(described, mlp)
        dense = mlp.shared_experts if isinstance(mlp, MoE) else mlp
        if dense is not None:
            described.gate = self._matrix(dense.gate_proj)
            described.up = self._matrix(dense.up_proj)
            described.down = self._matrix(dense.down_proj)
        return described

    def _describe_latent(self, described: Layer, attention: LatentAttention) -> None:
        described.key = self._matrix(attention.kv_a_proj_with_mqa)
        described.value = as_matrix(attention.kv_b_proj.weight, "weights", self._keep)
        described.latent_norm = self._floats(attention.kv_a_layernorm.weight)
        if attention.has_query_latent:
            described.query = self._matrix(attention.q_a_proj)
            described.query_up = self._matrix(attention.q_b_proj)
            described.query_norm = self._floats(attention.q_a_layernorm.weight)
        else:
            described.query = self._matrix(attention.q_proj)

    def _describe_experts(self, described: Layer, moe: MoE) -> None:
        gate, experts = moe.gate, moe.experts
        assert isinstance(gate, Router)
        described.router = as_matrix(gate.weight.float(), "weights", self._keep)
        described.experts_in = as_matrix(experts.gate_up_proj, self._form, self._keep)
        described.experts_out = as_matrix(experts.down_proj, self._form, self._keep)
        if gate.e_score_correction_bias is not None:
            described.bias = self._floats(gate.e_score_correction_bias)
        if gate.allowed is not None:
            described.allowed = self._address(gate.allowed.to(torch.uint8))
        if experts.slot_of_expert is not None:
            described.slots = self._address(experts.slot_of_expert.to(torch.int32))

    def _matrix(self, linear: Linear) -> Matrix:
        return as_matrix(linear.weight, self._form, self._keep)

    def _floats(self, values: Tensor) -> int:
        return self._address(values.detach().float())

    def _address(self, values: Tensor) -> int:
        self._keep.append(values.contiguous())
        return self._keep[-1].data_ptr()

    def _angles(self, positions: int) -> tuple[int, int]:
        """Cosines and sines of every position, float32 [P, R/2]."""
        rotation = self.model.rope(torch.arange(positions).unsqueeze(0))
        return self._floats(rotation.cos.flatten(0, -2)), self._floats(rotation.sin.flatten(0, -2))


def check_served(model: Transformer) -> None:
    """See that the compiled functions know everything in a model.

    Raises:
        RequestError: if they do not.
    """
    why = None
    weight = model.model.embed_tokens.weight
    if weight.device.type != "cpu":
        why = f"its weights are on {weight.device.type}"
    elif weight.dtype not in FLOAT_FORMATS:
        why = f"its weights are {weight.dtype}"
    for moe in model.moe_layers().values():
        if not isinstance(moe.gate, Router):
            why = "it routes by hashing"
        elif moe.experts.frozen is not None or moe.experts.lora is not None:
            why = "some experts are held apart, or have adapters"
    if why is not None:
        raise RequestError(f"the compiled decoder does not serve this model: {why}")


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


def _placed(owners: Sequence[Held]) -> tuple[Tensor, list[int], list[int]]:
    """Block tables int32, each token's row of them, and its position."""
    distinct = list({id(owner): owner for owner in owners}.values())
    row_of = {id(owner): row for row, owner in enumerate(distinct)}
    widest = max(len(owner.blocks) for owner in distinct)
    rows = [owner.blocks + [0] * (widest - len(owner.blocks)) for owner in distinct]
    fed = dict.fromkeys(row_of, 0)
    positions = []
    for owner in owners:
        positions.append(owner.length + fed[id(owner)])
        fed[id(owner)] += 1
    return torch.tensor(rows, dtype=torch.int32), [row_of[id(o)] for o in owners], positions
