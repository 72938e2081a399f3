"""`ModelConfig`: what a model is, in the keys of the published ``config.json``."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from moesaic.config.packed import PackedGroups
from moesaic.config.rules import check_attention, check_experts, check_tokens
from moesaic.config.settings import Settings

ModelType = Literal["deepseek", "deepseek_v2", "deepseek_v3"]
TokenIds = NonNegativeInt | Annotated[tuple[NonNegativeInt, ...], Field(strict=False)]

_FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "deepseek": {
        "scoring_func": "softmax",
        "topk_method": "greedy",
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "rope_interleave": False,
    },
    "deepseek_v2": {
        "scoring_func": "softmax",
        "topk_method": "greedy",
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "rope_interleave": True,
    },
    "deepseek_v3": {
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "rope_interleave": True,
    },
}
"""What the reference code of each family assumes where its config.json is silent."""


class RopeScaling(Settings):
    """YaRN: rotary frequencies stretched to a longer context. Source: arXiv 2309.00071."""

    type: Literal["yarn"] = "yarn"
    factor: PositiveFloat
    """How many times longer the context is than `original_max_position_embeddings`."""
    original_max_position_embeddings: PositiveInt
    """Context length the model was trained at before, in tokens."""
    beta_fast: PositiveFloat = 32.0
    """Rotations over the original context above which a frequency is kept as it is."""
    beta_slow: PositiveFloat = 1.0
    """Rotations below which a frequency is divided by `factor`."""
    mscale: Annotated[float, Field(ge=0)] = 1.0
    """Weight of log(factor) in the length of rotated queries and keys."""
    mscale_all_dim: Annotated[float, Field(ge=0)] = 0.0
    """Weight of log(factor) in the softmax temperature; 0 leaves it alone."""


class Fp8Blocks(Settings):
    """How published FP8 weights are stored: float8 e4m3 with one float32 scale per block."""

    quant_method: Literal["fp8"] = "fp8"
    fmt: Literal["e4m3"] = "e4m3"
    activation_scheme: Literal["dynamic"] = "dynamic"
    weight_block_size: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)] = (128, 128)
    """Rows and columns that share one scale."""


class ModelConfig(Settings):
    """Shape and rules of one model. `config.published` reads and writes it as ``config.json``."""

    model_type: ModelType
    """Family: DeepSeekMoE (V1), V2, or V3 and R1."""
    vocab_size: PositiveInt
    """Rows of the embedding."""
    hidden_size: PositiveInt
    """Width of the residual stream."""
    num_hidden_layers: PositiveInt
    """Decoder layers, without multi-token prediction modules."""
    intermediate_size: PositiveInt
    """Feed-forward width of the dense layers."""
    num_attention_heads: PositiveInt
    """Query heads."""
    num_key_value_heads: PositiveInt
    """Key-value heads; fewer than query heads only without latent attention."""

    first_k_dense_replace: NonNegativeInt = 0
    """How many of the first layers have a dense feed-forward instead of experts."""
    moe_layer_freq: PositiveInt = 1
    """Every how many layers, counted from 0, a layer has experts."""
    n_routed_experts: PositiveInt | None = None
    """Routed experts per layer; None for a model without experts."""
    n_shared_experts: NonNegativeInt | None = None
    """Experts every token passes, stored as one feed-forward of their joint width."""
    num_experts_per_tok: PositiveInt | None = None
    """Routed experts chosen for each token."""
    moe_intermediate_size: PositiveInt | None = None
    """Feed-forward width of one expert."""
    scoring_func: Literal["softmax", "sigmoid"]
    """How router logits become scores."""
    topk_method: Literal["greedy", "group_limited_greedy", "noaux_tc", "hash"]
    """How experts are chosen: best scores; best scores in the best groups (V2); the same with the
    choice bias (V3); or by a fixed hash of the token id (the Hash Layer baseline)."""
    n_group: PositiveInt | None = None
    """Groups the routed experts form, one per device or node."""
    topk_group: PositiveInt | None = None
    """Groups a token's experts may come from."""
    norm_topk_prob: bool
    """Whether gate values are divided by their sum over the chosen experts."""
    routed_scaling_factor: PositiveFloat
    """Factor on the gate values; V1 and V2 apply it only where they are not normalised."""

    kv_lora_rank: PositiveInt | None = None
    """Width of the key-value latent; None for multi-head attention."""
    q_lora_rank: PositiveInt | None = None
    """Width of the query latent; None for queries straight from the hidden state."""
    qk_nope_head_dim: PositiveInt | None = None
    """Query-key width per head without position."""
    qk_rope_head_dim: PositiveInt | None = None
    """Query-key width per head with rotary position."""
    v_head_dim: PositiveInt | None = None
    """Value width per head."""

    num_nextn_predict_layers: NonNegativeInt = 0
    """Multi-token prediction modules after the last layer."""
    max_position_embeddings: PositiveInt
    """Longest sequence, in tokens."""
    rope_theta: PositiveFloat = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """YaRN, or None."""
    rope_interleave: bool
    """Whether rotated dimensions are neighbours (V2, V3) or half the width apart (V1)."""
    rms_norm_eps: PositiveFloat = 1e-6
    """Added to the mean square in the layer norms."""
    initializer_range: PositiveFloat = 0.006
    """Standard deviation of fresh weights."""
    tie_word_embeddings: bool = False
    """Whether the head is the embedding."""
    bos_token_id: NonNegativeInt | None = None
    """Token a document begins with."""
    eos_token_id: TokenIds | None = None
    """Token, or tokens, a document ends with."""
    pad_token_id: NonNegativeInt | None = None
    """Token that fills a batch."""
    quantization_config: (
        Annotated[Fp8Blocks | PackedGroups, Field(discriminator="quant_method")] | None
    ) = None
    """How weights are quantised on disk; None for plain BF16, FP16 or FP32."""

    @model_validator(mode="before")
    @classmethod
    def _fill_family_defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        defaults = _FAMILY_DEFAULTS.get(str(data.get("model_type")), {})
        heads = {"num_key_value_heads": data.get("num_attention_heads")}
        given = {key: value for key, value in data.items() if value is not None}
        return {**data, **heads, **defaults, **given}

    @model_validator(mode="after")
    def _agree(self) -> Self:
        check_attention(self)
        check_experts(self)
        if self.num_nextn_predict_layers and self.model_type != "deepseek_v3":
            raise ValueError(
                f"num_nextn_predict_layers={self.num_nextn_predict_layers} needs "
                f"model_type='deepseek_v3', this is {self.model_type!r}; set it to 0"
            )
        check_tokens(self)
        return self

    @property
    def is_latent(self) -> bool:
        """Whether attention is multi-head latent attention."""
        return self.kv_lora_rank is not None

    @property
    def qk_head_dim(self) -> int:
        """Whole query-key width per head."""
        if self.qk_nope_head_dim is None or self.qk_rope_head_dim is None:
            return self.hidden_size // self.num_attention_heads
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def rope_dim(self) -> int:
        """Width per head that carries rotary position."""
        return self.qk_rope_head_dim or self.qk_head_dim

    @property
    def value_dim(self) -> int:
        """Value width per head."""
        return self.v_head_dim or self.qk_head_dim

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every token that ends a document."""
        if self.eos_token_id is None:
            return ()
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)

    def has_experts(self, layer: int) -> bool:
        """Whether layer ``layer`` has experts; multi-token prediction layers follow the last."""
        if self.n_routed_experts is None or layer < self.first_k_dense_replace:
            return False
        return layer >= self.num_hidden_layers or layer % self.moe_layer_freq == 0

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the decoder layers that have experts."""
        return tuple(i for i in range(self.num_hidden_layers) if self.has_experts(i))

    @property
    def experts(self) -> int:
        """Routed experts per layer; 0 for a dense model."""
        return self.n_routed_experts or 0

    @property
    def groups(self) -> int:
        """Expert groups; 1 where the choice is not limited to groups."""
        grouped = self.topk_method in ("group_limited_greedy", "noaux_tc")
        return (self.n_group or 1) if grouped else 1
