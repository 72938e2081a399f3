"""Read and write ``config.json`` as it is published, by the authors or by others' tools."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesaic.config.model import ModelConfig
from moesaic.config.packed import without_inert
from moesaic.errors import CheckpointError, ConfigError, suggest

ARCHITECTURES = {
    "deepseek": "DeepseekForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
}

_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "attention_dropout": (0,),
    "use_mla": (True,),
    "per_layer_config": ({},),
}
"""Keys that would change the model, with the values of the published ones."""

_INERT = frozenset(
    """
    architectures auto_map aux_loss_alpha seq_aux ep_size pretraining_tp head_dim qk_head_dim
    layer_types mlp_layer_types

    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash
    _experts_implementation _flash_attn_2_enabled _name_or_path add_cross_attention
    attn_implementation chunk_size_feed_forward cross_attention_hidden_size
    decoder_start_token_id dtype experts_implementation finetuning_task id2label is_composition
    is_decoder is_encoder_decoder label2id name_or_path num_labels output_attentions
    output_hidden_states output_router_logits prefix problem_type pruned_heads return_dict
    sep_token_id task_specific_params tf_legacy_loss tie_encoder_decoder tie_last_hidden_states
    tokenizer_class torch_dtype torchscript transformers_version unsloth_fixed unsloth_version
    use_bfloat16 use_cache

    assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens
    diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    encoder_repetition_penalty epsilon_cutoff eta_cutoff exponential_decay_length_penalty
    forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
    no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule num_beam_groups
    num_beams num_return_sequences output_scores remove_invalid_values repetition_penalty
    return_dict_in_generate suppress_tokens target_lookbehind temperature top_k top_p typical_p
    """.split()  # noqa: SIM905
)
"""Keys that published files carry and that do not change the model: training hints and derived
values, housekeeping of transformers, and its defaults for generation."""

_INERT_QUANTIZATION: dict[str, tuple[Any, ...]] = {
    "scale_fmt": ("float", "ue8m0"),
    "expert_dtype": ("fp8",),
    "dequantize": (False, True),
}
"""Values of keys beside the FP8 blocks that leave the stored form as it is."""

_ALIASES = {
    "num_mtp_layers": "num_nextn_predict_layers",
    "num_experts": "n_routed_experts",
    "num_local_experts": "n_routed_experts",
}


def parse_config(published: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """The model that a ``config.json`` describes.

    Args:
        published: its keys and values.
        where: the file's name, for messages.

    Raises:
        ConfigError: for a model of another family, an unknown key, or a setting that no model of
            this family has.
    """
    data = {_ALIASES.get(key, key): value for key, value in published.items() if value is not None}
    data["model_type"] = _family(data, where)
    for key, allowed in _FIXED.items():
        if key in data and data.pop(key) not in allowed:
            raise ConfigError(
                f"{where}: {key}={published[key]!r} is not supported; these models are published "
                f"with {allowed[0]!r}"
            )
    _unify_rope(data, where)
    _unify_quantization(data, where)
    known = ModelConfig.model_fields
    for key in list(data):
        if key in _INERT:
            del data[key]
        elif key not in known:
            raise ConfigError(
                f"{where}: {key} is not a setting of {data['model_type']} models"
                f"{suggest(key, known) or '; remove it'}"
            )
    config = ModelConfig.parse(data, where)
    _check_derived(config, published, where)
    return config


def read_config(folder: Path | str) -> ModelConfig:
    """The model in a checkpoint folder, or in a ``config.json`` given by its path.

    Raises:
        CheckpointError: if there is no such file, or it is not JSON.
        ConfigError: if it does not describe a model of this family.
    """
    path = Path(folder)
    if path.is_dir():
        path = path / "config.json"
    try:
        published = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} does not exist; give a checkpoint folder with a config.json"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); fetch it again") from None
    if not isinstance(published, dict):
        raise CheckpointError(f"{path} holds no JSON object; fetch it again")
    return parse_config(published, str(path))


def published_config(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """``config.json`` of a checkpoint, in the form the authors publish.

    Args:
        config: the model.
        dtype: what its weights are stored in, as ``"bfloat16"``.
    """
    data = config.model_dump(mode="json")
    if not config.num_nextn_predict_layers and config.model_type != "deepseek_v3":
        del data["num_nextn_predict_layers"]
    if data["quantization_config"] is None:
        del data["quantization_config"]
    if config.model_type == "deepseek":
        for key in ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim"):
            del data[key]
        del data["v_head_dim"]
    _write_groups(data, config)
    return {
        "architectures": [ARCHITECTURES[config.model_type]],
        **data,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "torch_dtype": dtype,
        "use_cache": True,
    }


def _write_groups(data: dict[str, Any], config: ModelConfig) -> None:
    """Experts without groups are published as one group, of V1 without the keys: vLLM computes
    groups of V2 and V3 whatever ``topk_method`` says, and takes no null."""
    if config.n_group is not None or not config.experts:
        return
    for key in ("n_group", "topk_group"):
        if config.is_latent:
            data[key] = 1
        else:
            del data[key]


def _family(data: Mapping[str, Any], where: str) -> str:
    """The family, by ``model_type`` or, where that is another's name for it, by architecture."""
    named = str(data.get("model_type"))
    if named in ARCHITECTURES:
        return named
    for family, architecture in ARCHITECTURES.items():
        if architecture in str(data.get("architectures")):
            return family
    raise ConfigError(
        f"{where}: model_type={data.get('model_type')!r} is not a DeepSeek architecture"
        f"{suggest(named, ARCHITECTURES)}; one of {', '.join(ARCHITECTURES)} is needed"
    )


def _unify_rope(data: dict[str, Any], where: str) -> None:
    """Newer files keep theta and scaling together in ``rope_parameters``; take them apart."""
    key = "rope_parameters" if "rope_parameters" in data else "rope_scaling"
    if key not in data:
        return
    scaling = _table(data.pop(key), f"{where}: {key}")
    data.pop("rope_scaling", None)
    if "rope_theta" in scaling:
        data["rope_theta"] = scaling.pop("rope_theta")
    older = scaling.pop("type", "default")
    kind = scaling.pop("rope_type", older)
    for inert in ("partial_rotary_factor", "attention_factor", "truncate"):
        if scaling.get(inert) in (None, 1.0, True):
            scaling.pop(inert, None)
    if kind != "default":
        data["rope_scaling"] = {"type": kind, **scaling}


def _unify_quantization(data: dict[str, Any], where: str) -> None:
    """Leave out what others write beside the form of the weights and what does not change it."""
    if "quantization_config" not in data:
        return
    blocks = _table(data["quantization_config"], f"{where}: quantization_config")
    method = blocks.get("quant_method")
    if method == "compressed-tensors":
        data["quantization_config"] = without_inert(blocks)
        return
    if method != "fp8":
        raise ConfigError(
            f"{where}: quantization_config.quant_method={method!r} is not supported; "
            "convert the weights to 'fp8' blocks or to bfloat16"
        )
    for key, values in _INERT_QUANTIZATION.items():
        if blocks.get(key) in values:
            del blocks[key]
    for key in ("modules_to_not_convert", "modules_to_convert", "ignored_layers"):
        blocks.pop(key, None)  # a tensor is quantised if its scale is stored beside it
    data["quantization_config"] = blocks


def _table(value: Any, where: str) -> dict[str, Any]:
    """A copy of a nested object, without keys that are null."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}={value!r} is not an object; write its settings in braces")
    return {key: part for key, part in value.items() if part is not None}


def _check_derived(config: ModelConfig, published: Mapping[str, Any], where: str) -> None:
    """Refuse values that others compute from the configuration, where they contradict it."""
    layers = range(config.num_hidden_layers)
    implied: dict[str, Any] = {
        "qk_head_dim": config.qk_head_dim,
        "layer_types": ["full_attention" for _ in layers],
        "mlp_layer_types": ["sparse" if config.has_experts(i) else "dense" for i in layers],
    }
    if not config.is_latent:
        implied["head_dim"] = config.qk_head_dim
    for key, value in implied.items():
        if published.get(key) not in (None, value):
            raise ConfigError(
                f"{where}: {key}={published[key]!r} contradicts the other settings, which make it "
                f"{value!r}; remove {key} or correct them"
            )
