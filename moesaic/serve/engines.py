"""Commands of vLLM and SGLang: the options with which a machine serves its part of a model.

Options as vLLM 0.32 and SGLang 0.5.23 name them: the argument parsers of both take every command,
and vLLM's build for CPUs serves with them.

Source: docs.vllm.ai, "Data Parallel Deployment" and "Expert Parallel Deployment"; docs.sglang.io,
"Server Arguments" and "Expert Parallelism".
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moesaic.config.launch import LaunchConfig
from moesaic.config.model import ModelConfig
from moesaic.serve.layout import Layout

Engine = Literal["vllm", "sglang"]
ENGINES: dict[str, Engine] = {"vllm": "vllm", "sglang": "sglang"}


@dataclass(frozen=True, slots=True)
class Cluster:
    """The GPUs to use."""

    gpus: int = 1
    """In each machine."""
    nodes: int = 1
    """Machines."""
    redundant: int = 0
    """Copies of experts in every layer, on all GPUs together."""


def _vllm(
    folder: Path,
    model: ModelConfig,
    layout: Layout,
    cluster: Cluster,
    config: LaunchConfig,
    machine: int,
) -> Iterator[str]:
    yield from ("vllm", "serve", str(folder), "--served-model-name", _name(folder, config))
    yield from ("--dtype", "bfloat16", "--max-model-len", _context(model, config))
    yield from ("--gpu-memory-utilization", str(config.memory_share))
    yield from _changed("--hf-overrides", {**_groups(model), **_as_known(model)})
    yield from ("--tensor-parallel-size", str(layout.tensor))
    if layout.data > 1:
        yield from ("--data-parallel-size", str(layout.data))
    if layout.spreads_experts and layout.gpus > 1:
        yield "--enable-expert-parallel"
    if cluster.redundant:
        copies = json.dumps({"num_redundant_experts": cluster.redundant})
        yield from ("--enable-eplb", "--eplb-config", copies)
    if cluster.nodes > 1:
        local = layout.data // cluster.nodes
        yield from ("--data-parallel-size-local", str(local))
        yield from ("--data-parallel-address", str(config.first_address))
        yield from ("--data-parallel-rpc-port", str(config.first_port))
        if machine:
            yield from ("--data-parallel-start-rank", str(machine * local), "--headless")
            return
    yield from ("--host", config.host, "--port", str(config.port))


def _sglang(
    folder: Path,
    model: ModelConfig,
    layout: Layout,
    cluster: Cluster,
    config: LaunchConfig,
    machine: int,
) -> Iterator[str]:
    yield from ("python3", "-m", "sglang.launch_server", "--model-path", str(folder))
    yield from ("--served-model-name", _name(folder, config), "--dtype", "bfloat16")
    yield from ("--context-length", _context(model, config))
    yield from ("--mem-fraction-static", str(config.memory_share), *_code(model))
    yield from _changed("--json-model-override-args", _groups(model))
    yield from ("--tp-size", str(layout.gpus if model.is_latent else layout.tensor))
    if layout.data > 1:
        yield from ("--attn-dp-size" if model.is_latent else "--dp-size", str(layout.data))
    if layout.spreads_experts and layout.gpus > 1:
        yield from ("--ep-size", str(layout.gpus))
    if cluster.redundant:
        yield from ("--ep-num-redundant-experts", str(cluster.redundant))
    if config.placement is not None:
        yield from ("--init-expert-location", config.placement)
    elif cluster.redundant:
        yield "--enable-eplb"
    if cluster.nodes > 1:
        first = f"{config.first_address}:{config.first_port}"
        yield from ("--nnodes", str(cluster.nodes), "--node-rank", str(machine))
        yield from ("--dist-init-addr", first)
    yield from ("--host", config.host, "--port", str(config.port))


def _name(folder: Path, config: LaunchConfig) -> str:
    return config.name or folder.resolve().name


def _context(model: ModelConfig, config: LaunchConfig) -> str:
    return str(config.context or model.max_position_embeddings)


def _changed(option: str, settings: dict[str, Any]) -> tuple[str, ...]:
    """Settings of config.json that an engine is to read otherwise."""
    return (option, json.dumps(settings)) if settings else ()


def _groups(model: ModelConfig) -> dict[str, Any]:
    """Both compute groups of experts whatever ``topk_method`` says, and take no null for one."""
    is_missing = model.n_group is None and model.is_latent
    return {"n_group": 1, "topk_group": 1} if is_missing else {}


def _code(model: ModelConfig) -> tuple[str, ...]:
    """V1's config.json is read by code that DeepSeek publishes beside it."""
    return ("--trust-remote-code",) if model.model_type == "deepseek" else ()


def _as_known(model: ModelConfig) -> dict[str, Any]:
    """V1 without that code, for vLLM, whose model of V1 needs only some class to read its settings
    with: one of a family that has the rotary positions and keeps what it does not know. What this
    family would add is told otherwise: a bias of the choice, no experts, heads with latents."""
    if model.model_type != "deepseek":
        return {}
    heads = {"qk_nope_head_dim": 0, "qk_rope_head_dim": 0}
    experts = {"topk_method": "greedy", "num_experts": model.experts}
    return {"model_type": "kimi_linear", **experts, **heads}


OPTIONS: dict[
    Engine, Callable[[Path, ModelConfig, Layout, Cluster, LaunchConfig, int], Iterator[str]]
] = {
    "vllm": _vllm,
    "sglang": _sglang,
}
"""The words of the command that serves a model, spread in that way, on one machine."""
