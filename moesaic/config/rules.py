"""What the settings of one model must agree on. Each rule raises ValueError with the fix."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moesaic.config.model import ModelConfig


def check_attention(config: "ModelConfig") -> None:
    """Heads and widths fit the kind of attention."""
    if config.is_latent:
        _check_latent(config)
    else:
        _check_multi_head(config)
    if config.rope_dim % 2:
        name = "qk_rope_head_dim" if config.is_latent else "hidden_size / num_attention_heads"
        raise ValueError(
            f"{name}={config.rope_dim} is odd; rotary position turns pairs, make it even"
        )


def _check_latent(config: "ModelConfig") -> None:
    for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
        if getattr(config, name) is None:
            raise ValueError(f"kv_lora_rank={config.kv_lora_rank} needs {name}; give it a width")
    if config.num_key_value_heads != config.num_attention_heads:
        raise ValueError(
            f"num_key_value_heads={config.num_key_value_heads} contradicts kv_lora_rank: "
            f"latent attention has as many as num_attention_heads={config.num_attention_heads}"
        )


def _check_multi_head(config: "ModelConfig") -> None:
    for name in ("q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
        if getattr(config, name) is not None:
            raise ValueError(
                f"{name}={getattr(config, name)} has no meaning without kv_lora_rank; "
                "set kv_lora_rank, or leave both out for multi-head attention"
            )
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"hidden_size={config.hidden_size} is not a multiple of "
            f"num_attention_heads={config.num_attention_heads}; change one of them"
        )
    if config.num_attention_heads % config.num_key_value_heads:
        raise ValueError(
            f"num_attention_heads={config.num_attention_heads} is not a multiple of "
            f"num_key_value_heads={config.num_key_value_heads}; change one of them"
        )


def check_experts(config: "ModelConfig") -> None:
    """The settings of experts come together, and the choice among them is possible."""
    experts, chosen = config.n_routed_experts, config.num_experts_per_tok
    if experts is None:
        for name in ("num_experts_per_tok", "moe_intermediate_size", "n_shared_experts"):
            if getattr(config, name):
                raise ValueError(
                    f"{name}={getattr(config, name)} has no meaning without n_routed_experts; "
                    "set n_routed_experts, or leave both out for a dense model"
                )
        return
    if chosen is None or config.moe_intermediate_size is None:
        missing = "num_experts_per_tok" if chosen is None else "moe_intermediate_size"
        raise ValueError(f"n_routed_experts={experts} needs {missing}; give it a value")
    if chosen > experts:
        raise ValueError(
            f"num_experts_per_tok={chosen} is more than n_routed_experts={experts}; "
            "lower num_experts_per_tok"
        )
    if config.topk_method == "hash" and chosen != 1:
        raise ValueError(
            f"num_experts_per_tok={chosen} contradicts topk_method='hash', which sends every token "
            "to one expert; set num_experts_per_tok to 1"
        )
    if config.topk_method == "noaux_tc" and config.scoring_func != "sigmoid":
        raise ValueError(
            f"scoring_func={config.scoring_func!r} contradicts topk_method='noaux_tc', whose "
            "choice bias is defined on sigmoid scores; set scoring_func to 'sigmoid'"
        )
    _check_groups(config, experts, chosen)


def _check_groups(config: "ModelConfig", experts: int, chosen: int) -> None:
    if config.topk_method not in ("group_limited_greedy", "noaux_tc"):
        if (config.n_group or 1) > 1 and config.topk_group != config.n_group:
            raise ValueError(
                f"n_group={config.n_group} has no effect with topk_method={config.topk_method!r}; "
                "set topk_method to 'group_limited_greedy', or n_group to 1"
            )
        return
    groups, kept = config.n_group or 1, config.topk_group or 1
    if experts % groups:
        raise ValueError(
            f"n_routed_experts={experts} is not a multiple of n_group={groups}; change one of them"
        )
    if kept > groups:
        raise ValueError(f"topk_group={kept} is more than n_group={groups}; lower topk_group")
    if kept * (experts // groups) < chosen:
        raise ValueError(
            f"topk_group={kept} groups of {experts // groups} experts hold fewer than "
            f"num_experts_per_tok={chosen}; raise topk_group or lower num_experts_per_tok"
        )


def check_tokens(config: "ModelConfig") -> None:
    """Special tokens are in the vocabulary."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = getattr(config, name)
        for token in ids if isinstance(ids, tuple) else (ids,):
            if token is not None and token >= config.vocab_size:
                raise ValueError(
                    f"{name}={token} is outside the vocabulary; vocab_size={config.vocab_size} "
                    "allows ids below it"
                )
