"""The commands with which vLLM or SGLang serves a checkpoint: one for each machine."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moesaic.balance.placement import Devices
from moesaic.config.launch import LaunchConfig
from moesaic.config.model import ModelConfig
from moesaic.errors import ConfigError
from moesaic.planner.devices import get_device
from moesaic.serve.engines import OPTIONS, Cluster, Engine
from moesaic.serve.layout import Layout, Need, check_fits, choose_layout, need
from moesaic.serve.served_by import check_cluster, check_model
from moesaic.units import gib


@dataclass(frozen=True, slots=True)
class Launch:
    """What to run, and what it needs."""

    commands: tuple[tuple[str, ...], ...]
    """One for each machine."""
    layout: Layout
    need: Need
    notes: tuple[str, ...]
    """What to know before running them."""


def plan_launch(
    folder: Path, model: ModelConfig, engine: Engine, cluster: Cluster, config: LaunchConfig
) -> Launch:
    """The commands that serve a checkpoint.

    Heads are shared inside a machine, or none are if so configured; experts are spread over all
    GPUs, with copies of the busiest if asked for; machines have sequences of their own.

    Args:
        folder: of the checkpoint.
        model: what it is.
        engine: what serves it.
        cluster: on which GPUs.
        config: and how.

    Raises:
        ConfigError: if the engine does not compute such a model, or it does not fit.
        DataError: if the placement is not one, or of another model.
    """
    check_model(folder, model, engine)
    check_cluster(model, engine, cluster, config)
    context = config.context or model.max_position_embeddings
    if context > model.max_position_embeddings:
        raise ConfigError(
            f"context={context} is more than max_position_embeddings="
            f"{model.max_position_embeddings}; lower it"
        )
    spreads = bool(model.experts) and (model.is_latent or engine == "vllm")
    layout = choose_layout(
        model, cluster.gpus, cluster.nodes, config.attention == "tensor", spreads
    )
    if spreads:
        Devices(layout.gpus, cluster.redundant).check(model.experts)
    found = need(model, layout, cluster.redundant)
    if config.device is not None:
        usable = config.memory_share * get_device(config.device).memory
        check_fits(found, context, usable, layout)
    commands = tuple(
        tuple(OPTIONS[engine](folder, model, layout, cluster, config, machine))
        for machine in range(cluster.nodes)
    )
    return Launch(commands, layout, found, tuple(_notes(found, layout, config)))


def _notes(found: Need, layout: Layout, config: LaunchConfig) -> Iterator[str]:
    each = f"{gib(found.weights)} of weights on each of {layout.gpus} GPUs, estimated"
    if config.device is None:
        yield f"{each}; name them with --set device=h100-sxm to see whether they hold it"
        return
    room = found.room(config.memory_share * get_device(config.device).memory)
    yield f"{each}; room to cache {room} tokens in all"
