"""What vLLM and SGLang can serve, of the models that can be built here."""

import json
from collections.abc import Iterator
from pathlib import Path

from moesaic.config.launch import LaunchConfig
from moesaic.config.model import Fp8Blocks, ModelConfig
from moesaic.config.packed import PackedGroups
from moesaic.errors import ConfigError, DataError
from moesaic.serve.engines import Cluster, Engine

_OWN_CODE = "configuration_deepseek.py"


def check_model(folder: Path, model: ModelConfig, engine: Engine) -> None:
    """See that an engine computes a model as it is computed here.

    Raises:
        ConfigError: if it does not; the message says what it lacks.
    """
    reason = next(_obstacles(folder, model, engine), None)
    if reason is not None:
        raise ConfigError(
            f"{engine} cannot serve {folder}: {reason}; serve it with `moesaic serve`"
        )


def _obstacles(folder: Path, model: ModelConfig, engine: Engine) -> Iterator[str]:
    if not (folder / "tokenizer.json").is_file():
        yield "it has no tokenizer.json"
    if not model.experts:
        yield "a model without experts is not read by its classes of this architecture"
    if model.topk_method == "hash":
        yield "topk_method='hash' is not there"
    if model.topk_method == "noaux_tc" and model.experts < 2 * model.groups:
        yield f"it scores a group by two experts, and n_group={model.groups} leaves them one"
    if model.tie_word_embeddings:
        yield "a head of its own is expected, and tie_word_embeddings is true"
    if model.rope_interleave != model.is_latent:
        yield f"rotated pairs lie otherwise there than with rope_interleave={model.rope_interleave}"
    scaled = model.routed_scaling_factor != 1
    if scaled and not model.is_latent:
        yield f"routed_scaling_factor={model.routed_scaling_factor} is not read for this family"
    if scaled and model.norm_topk_prob and model.model_type != "deepseek_v3":
        yield "gate values that are normalised are scaled too there, and not in this family"
    reads_code = engine == "sglang" and model.model_type == "deepseek"
    if reads_code and not (folder / _OWN_CODE).is_file():
        yield (
            f"config.json of this family is read only with the {_OWN_CODE} that DeepSeek publishes "
            "beside it, and with the auto_map that names it (vllm needs neither)"
        )
    yield from _quantised_obstacles(model)


def _quantised_obstacles(model: ModelConfig) -> Iterator[str]:
    """Weights that share a scale, across two matrices that lie in one there."""
    form = model.quantization_config
    if isinstance(form, Fp8Blocks):
        block = form.weight_block_size[0]
        for name, width in _stacked(model):
            if width % block:
                yield f"{name} gives {width} rows, no whole blocks of {block}, before the next ones"
    if isinstance(form, PackedGroups):
        group, widths = (
            form.weights.group_size,
            (model.hidden_size, model.moe_intermediate_size or 0),
        )
        if len({width % group == 0 for width in widths}) > 1:
            yield (
                f"experts have rows of {widths[0]} and {widths[1]} weights, not all of whole "
                f"groups of {group}, and their projections are read in one form there"
            )


def _stacked(model: ModelConfig) -> Iterator[tuple[str, int]]:
    """Rows of matrices that have others below them there, by the setting that makes them."""
    if model.first_k_dense_replace:
        yield "intermediate_size", model.intermediate_size
    yield "moe_intermediate_size", model.moe_intermediate_size or 0
    if model.q_lora_rank:
        yield "q_lora_rank", model.q_lora_rank
    if not model.is_latent:
        yield "hidden_size", model.hidden_size


def check_cluster(
    model: ModelConfig, engine: Engine, cluster: Cluster, config: LaunchConfig
) -> None:
    """See that there are such GPUs, and that the engine can spread the model over them so.

    Raises:
        ConfigError: if not.
        DataError: if the placement is not one, or of another model.
    """
    if min(cluster.gpus, cluster.nodes) < 1 or cluster.redundant < 0:
        raise ConfigError(
            f"--gpus {cluster.gpus}, --nodes {cluster.nodes}, --redundant {cluster.redundant}: "
            "give at least 1, 1 and 0"
        )
    if cluster.nodes > 1 and config.first_address is None:
        raise ConfigError(
            f"--nodes {cluster.nodes} needs the address of the first machine; "
            "give it with --set first_address=ADDRESS"
        )
    if cluster.nodes > 1 and engine == "sglang" and not model.is_latent:
        raise ConfigError(
            f"sglang gives machines sequences of their own only with latent attention, and --nodes "
            f"is {cluster.nodes}; use vllm, or one machine"
        )
    if config.machine >= cluster.nodes:
        raise ConfigError(f"machine={config.machine} is not one of --nodes {cluster.nodes}")
    if cluster.redundant or config.placement:
        _check_copies(model, engine, cluster, config)


def _check_copies(
    model: ModelConfig, engine: Engine, cluster: Cluster, config: LaunchConfig
) -> None:
    """Copies of experts are possible, and a placement is of this model with so many."""
    if not model.experts or not model.is_latent or cluster.gpus * cluster.nodes == 1:
        raise ConfigError(
            "copies of experts and their placement need a model of V2 or V3 with experts, and more "
            "than one GPU; leave --redundant and placement out"
        )
    if isinstance(model.quantization_config, PackedGroups):
        raise ConfigError(
            "experts that are moved while serving are in BF16 or FP8 blocks there, and these are "
            "packed integers; leave --redundant and placement out, or give the original"
        )
    if config.placement is None:
        return
    if engine == "vllm":
        raise ConfigError(
            "vllm reads no placement, it measures loads itself; leave placement out, or use sglang"
        )
    slots = model.experts + cluster.redundant
    try:
        told = json.loads(Path(config.placement).read_text())
        rows = told.pop("physical_to_logical_map")
        fits = len(rows) >= max(model.moe_layers) + 1 and {len(row) for row in rows} == {slots}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{config.placement} has no placement ({type(error).__name__}: {error}); give the file "
            "of `moesaic place --out`"
        ) from None
    if told or not config.placement.endswith(".json"):
        raise DataError(
            f"{config.placement} is not read by sglang: its name ends in .json, and it has nothing "
            "beside physical_to_logical_map; make it with `moesaic place --out placement.json`"
        )
    if not fits:
        raise DataError(
            f"{config.placement} is not for {max(model.moe_layers) + 1} layers of {slots} slots; "
            f"make it with `moesaic place --redundant {cluster.redundant}` from this model's loads"
        )
