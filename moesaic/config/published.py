"""Read and write ``config.json`` as it is published, by the authors or by others' tools."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesaic.config.model import ModelConfig
from moesaic.errors import CheckpointError, ConfigError, suggest

ARCHITECTURES = {
    "deepseek": "DeepseekForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
}

_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "attention_dropout": (0, None),
    "use_mla": (True, None),
}
"""Keys that would change the model, with the values of the published ones."""

_INERT = frozenset(
    "architectures auto_map aux_loss_alpha seq_aux ep_size pretraining_tp head_dim qk_head_dim "
    "use_cache torch_dtype dtype transformers_version _name_or_path name_or_path is_encoder_decoder "
    "is_decoder add_cross_attention cross_attention_hidden_size tie_encoder_decoder "
    "output_attentions output_hidden_states output_router_logits return_dict return_dict_in_generate "
    "id2label label2id num_labels problem_type task_specific_params finetuning_task prefix "
    "chunk_size_feed_forward pruned_heads torchscript tf_legacy_loss use_bfloat16 sep_token_id "
    "decoder_start_token_id tokenizer_class output_scores forced_bos_token_id forced_eos_token_id "
    "remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens "
    "max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty "
    "temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size "
    "encoder_no_repeat_ngram_size bad_words_ids num_return_sequences attn_implementation "
    "_attn_implementation_autoset unsloth_version unsloth_fixed mlp_layer_types layer_types".split()
)
"""Keys that published files carry and that do not change the model: training hints of the
original framework, and housekeeping of transformers."""

_ALIASES = {"num_mtp_layers": "num_nextn_predict_layers", "num_experts": "n_routed_experts"}


def parse_config(published: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """The model that a ``config.json`` describes.

    Args:
        published: its keys and values.
        where: the file's name, for messages.

    Raises:
        ConfigError: for a model of another family, an unknown key, or a setting that no model of
            this family has.
    """
    data = {_ALIASES.get(key, key): value for key, value in published.items()}
    data["model_type"] = _family(data, where)
    for key, allowed in _FIXED.items():
        if key in data and data.pop(key) not in allowed:
            raise ConfigError(
                f"{where}: {key}={published[key]!r} is not supported; DeepSeek models are published "
                f"with {allowed[0]!r}"
            )
    _unify_rope(data)
    known = ModelConfig.model_fields
    for key in list(data):
        if key in _INERT:
            del data[key]
        elif key not in known:
            raise ConfigError(
                f"{where}: {key} is not a setting of {data['model_type']} models"
                f"{suggest(key, known) or '; remove it'}"
            )
    return ModelConfig.parse(data, where)


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
    return {
        "architectures": [ARCHITECTURES[config.model_type]],
        **data,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "torch_dtype": dtype,
        "use_cache": True,
    }


def _family(data: Mapping[str, Any], where: str) -> str:
    """The family, by ``model_type`` or, where that is another's name for it, by architecture."""
    if data.get("model_type") in ARCHITECTURES:
        return data["model_type"]
    by_class = {architecture: family for family, architecture in ARCHITECTURES.items()}
    for architecture in data.get("architectures") or ():
        if architecture in by_class:
            return by_class[architecture]
    raise ConfigError(
        f"{where}: model_type={data.get('model_type')!r} is not a DeepSeek architecture"
        f"{suggest(str(data.get('model_type')), ARCHITECTURES)}; one of "
        f"{', '.join(ARCHITECTURES)} is needed"
    )


def _unify_rope(data: dict[str, Any]) -> None:
    """Newer files keep theta and scaling together in ``rope_parameters``; take them apart."""
    scaling = data.pop("rope_parameters", None) or data.get("rope_scaling")
    if scaling is None:
        return
    scaling = dict(scaling)
    theta = scaling.pop("rope_theta", None)
    if theta is not None:
        data["rope_theta"] = theta
    kind = scaling.pop("rope_type", scaling.pop("type", "default"))
    scaling.pop("type", None)
    for inert in ("partial_rotary_factor", "attention_factor", "truncate"):
        if scaling.get(inert) in (None, 1.0, True):
            scaling.pop(inert, None)
    data["rope_scaling"] = None if kind == "default" else {"type": kind, **scaling}
