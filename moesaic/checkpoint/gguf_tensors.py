"""The tensors of a model as llama.cpp wants them: renamed, experts stacked, ``kv_b_proj`` in two.

Letters: O rows of a weight, D its columns, H heads, N query-key width without position, U value
width, Z key-value latent.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import gguf
import torch
from torch import Tensor

from moesaic.checkpoint.gguf_shape import architecture
from moesaic.checkpoint.load import Reader
from moesaic.config.model import ModelConfig
from moesaic.planner.inventory import TensorSpec, tensors

_ROTATED = ("q_proj", "q_b_proj", "k_proj", "kv_a_proj_with_mqa")


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the file, in one or more parts that lie one after the other."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[Callable[[], Tensor], ...]
    """Give the parts, in the type they are stored in."""
    is_exact: bool = False
    """Whether it stays in float32: norms, routers and choice biases."""
    is_delicate: bool = False
    """Whether four bits are too few: embedding, head and ``kv_b_proj``."""


def entries(reader: Reader) -> Iterator[Entry]:
    """The tensors of a checkpoint, without prediction modules."""
    config = reader.config
    names = gguf.get_tensor_name_map(architecture(config), config.num_hidden_layers)

    def renamed(name: str) -> str:
        endings = (".weight", ".bias")
        found = names.get_name(name.replace("_correction_bias", "_correction.bias"), endings)
        assert found is not None, name
        return found

    def read(spec: TensorSpec) -> Tensor:
        return _arranged(reader.read(spec.name), spec, config)

    for spec in tensors(config):
        if spec.copy_of is not None or (spec.layer or 0) >= config.num_hidden_layers:
            continue
        if spec.expert is not None:
            if spec.expert == 0:
                yield _stack(spec, config.experts, renamed, read)
        elif spec.name.endswith(".kv_b_proj.weight"):
            yield from _split(spec, config, renamed, read)
        else:
            exact = len(spec.shape) == 1 or spec.role == "router"
            delicate = spec.role in ("embedding", "head")
            make = partial(read, spec)
            yield Entry(renamed(spec.name), spec.shape, (make,), exact, delicate)


def _stack(
    first: TensorSpec,
    n_experts: int,
    renamed: Callable[[str], str],
    read: Callable[[TensorSpec], Tensor],
) -> Entry:
    """One projection of all experts of a layer."""
    before, _, after = first.name.rpartition(".0.")
    each = (
        TensorSpec(f"{before}.{expert}.{after}", first.shape, first.role, first.layer, expert)
        for expert in range(n_experts)
    )
    parts = tuple(partial(read, spec) for spec in each)
    return Entry(renamed(f"{before}.{after}"), (n_experts, *first.shape), parts)


def _split(
    spec: TensorSpec,
    config: ModelConfig,
    renamed: Callable[[str], str],
    read: Callable[[TensorSpec], Tensor],
) -> Iterator[Entry]:
    """What brings latents to keys, transposed, and what brings them to values, for absorbed
    attention."""
    heads, latent = config.num_attention_heads, spec.shape[1]
    unrotated, values = config.qk_head_dim - config.rope_dim, config.value_dim

    def per_head() -> tuple[Tensor, Tensor]:
        to_keys_HNZ, to_values_HUZ = (
            read(spec).unflatten(0, (heads, -1)).split((unrotated, values), dim=1)
        )
        return to_keys_HNZ.transpose(1, 2), to_values_HUZ

    key, value = (
        renamed(spec.name.replace("kv_b_proj", part)) for part in ("k_b_proj", "v_b_proj")
    )
    keys, taken = (heads, latent, unrotated), (heads, values, latent)
    yield Entry(key, keys, (lambda: per_head()[0],), is_delicate=True)
    yield Entry(value, taken, (lambda: per_head()[1],), is_delicate=True)


def _arranged(weight: Tensor, spec: TensorSpec, config: ModelConfig) -> Tensor:
    """The same weight with rotated pairs as neighbours, as llama.cpp rotates them."""
    module = spec.name.split(".")[-2]
    if config.rope_interleave or spec.role != "attention" or module not in _ROTATED:
        return weight
    latent = config.kv_lora_rank or 0
    head = latent + config.rope_dim if module == "kv_a_proj_with_mqa" else config.qk_head_dim
    return as_neighbours(weight, head, config.rope_dim)


def as_neighbours(weight_OD: Tensor, head: int, rotated: int) -> Tensor:
    """Reorder the last ``rotated`` rows of every ``head``: pairs half of them apart become
    neighbours."""
    per_head = weight_OD.unflatten(0, (-1, head))
    kept, turned = per_head.split((head - rotated, rotated), dim=1)
    turned = turned.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
    return torch.cat((kept, turned), dim=1).flatten(0, 1)
