"""A model from a folder, held to write text: as it is stored, and in a bounded memory."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path

import torch

from moesaic.checkpoint.load import Reader, load_into
from moesaic.config.model import ModelConfig
from moesaic.errors import ConfigError
from moesaic.infer.held import HeldExperts, HeldLinear
from moesaic.infer.offload import ExpertCache
from moesaic.infer.spare import SpareExperts
from moesaic.infer.stored import Sizes, Source, expert_kinds, read_expert_
from moesaic.kernels.large_pages import empty_in_large_pages
from moesaic.kernels.native.build import library
from moesaic.kernels.native.pack import FLOAT_FORMATS, Form, Rows
from moesaic.kernels.native.structures import native_library
from moesaic.model.build import empty_model, torch_device, torch_dtype
from moesaic.model.linear import Linear
from moesaic.model.residency import Residency, layers_with_experts
from moesaic.model.transformer import Transformer
from moesaic.planner.inventory import tensors
from moesaic.units import gib, parse_bytes

_CODES = ("int8", "int4", "float8", "lossless")


def load_held(
    folder: Path | str,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    form: Form = "weights",
    memory: int | None = None,
) -> Transformer:
    """The model in a checkpoint folder, to write text with and not to train.

    Integers and 8-bit floats stay as they are stored where there is a compiled decoder for them:
    nothing is made larger on the way. Tensors are read one at a time.

    Args:
        folder: see `load_model`.
        dtype: of weights that are stored as floats, of embedding and norms.
        device: where to.
        form: what weights that are stored as floats are made; on a CPU only, lossless with bfloat16
            alone.
        memory: bytes that all weights may take. The experts used most are held in what is left of
            it beside the weights that every token needs, the others are read when they are chosen.
            None for all experts.

    Raises:
        CheckpointError: if the folder is incomplete, damaged, or does not fit its config.json.
        ConfigError: if the memory is too small, or the weights or the device do not allow the form.
        RequestError: if a form is asked for and there is no compiled decoder.
    """
    reader, device = Reader(folder), torch_device(device)
    source = _held_from(reader, torch_dtype(dtype), device, form, memory)
    if source is None:
        model = empty_model(reader.config, dtype, device).requires_grad_(False)
        for parameter in model.parameters():
            if device.type == "cpu":
                parameter.data = empty_in_large_pages(*parameter.shape, dtype=parameter.dtype)
        load_into(reader, model.state_dict())
        return model
    return _hold(source, device, memory, {}).model


def load_spacious(
    reader: Reader,
    room: Mapping[int, int],
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    form: Form = "weights",
    memory: int | None = None,
) -> SpareExperts:
    """The same with room for experts of other weights, which are held as the model's own.

    Args:
        reader: the checkpoint.
        room: layer → slots.
        dtype: see `load_held`, as for all that follow.
        device: where to.
        form: what weights that are stored as floats are made.
        memory: bytes that all weights may take, the room among them.

    Raises:
        CheckpointError: if a tensor is damaged.
        ConfigError: see `load_held`.
        RequestError: if a form is asked for and there is no compiled decoder.
    """
    dtype, device = torch_dtype(dtype), torch_device(device)
    source = _held_from(reader, dtype, device, form, memory)
    if source is not None:
        return _hold(source, device, memory, room)
    model = empty_model(reader.config, dtype, device).requires_grad_(False)
    spare = SpareExperts.behind_stacks(model, room)
    load_into(reader, spare.base_state())
    return spare


def _held_from(
    reader: Reader, dtype: torch.dtype, device: torch.device, form: Form, memory: int | None
) -> Source | None:
    """What weights are held from that are not plain parameters; None where all are."""
    if form != "weights":
        if device.type != "cpu":
            raise ConfigError(f"form={form} is for a CPU; leave it out, or device={device}")
        native_library()
    compiled = _has_compiled_form(reader.config, dtype, device)
    quantised = reader.config.quantization_config is not None
    if memory is None and form == "weights" and not (quantised and compiled):
        return None
    return Source(reader, dtype, form, keeps_codes=compiled)


def _hold(
    source: Source, device: torch.device, memory: int | None, room: Mapping[int, int]
) -> SpareExperts:
    """A model as a source holds it, with room for further experts."""
    reader, n_beside = source.reader, sum(room.values())
    n_slots = None if memory is None else slots_in(source, memory, n_beside)
    layers = layers_with_experts(reader.config)
    apart = dict.fromkeys(layers, tuple(range(reader.config.experts)))
    model = empty_model(reader.config, source.dtype, device, Residency({}, {}, apart))
    _hold_linears_(model, source)
    load_into(reader, model.state_dict(), model.residency.stacks(model.config))
    slots = _hold_experts_(model, source, n_slots, room, device)
    return SpareExperts(model.requires_grad_(False), slots)


def slots_in(source: Source, memory: int, n_beside: int = 0) -> int:
    """How many experts can be held in so many bytes beside what every token needs.

    Args:
        source: the checkpoint.
        memory: the bytes.
        n_beside: experts of other weights that have to be held, too.

    Raises:
        ConfigError: if these are fewer than a token needs at a time.
    """
    sizes, config = Sizes.of(source), source.reader.config
    least = _least(sizes, config, n_beside)
    if memory < least:
        smaller = ", ".join(_smaller(source, n_beside))
        shards = f"{n_beside} experts of shards {gib(n_beside * sizes.expert)}, "
        raise ConfigError(
            f"memory={gib(memory)} is too little for {source.reader.folder}: what every token "
            f"needs takes {gib(sizes.resident)}, {shards if n_beside else ''}and the "
            f"{config.num_experts_per_tok or 0} experts of a token in a layer take "
            f"{gib(_least(sizes, config, 0) - sizes.resident)}; give at least "
            f"memory={_size(least)}{smaller and f', or {smaller}'}"
        )
    left = memory - sizes.resident - n_beside * sizes.expert
    return min(sizes.n_experts, left // max(1, sizes.expert))


def _least(sizes: Sizes, config: ModelConfig, n_beside: int) -> int:
    return sizes.resident + ((config.num_experts_per_tok or 0) + n_beside) * sizes.expert


def _smaller(source: Source, n_beside: int) -> list[str]:
    """What else would make it fit into less."""
    others: dict[str, Source] = {}
    if source.dtype == torch.float32:
        others["dtype=bfloat16"] = replace(source, dtype=torch.bfloat16)
    is_plain = source.form == "weights" and source.reader.config.quantization_config is None
    if is_plain and source.keeps_codes:
        forms: tuple[Form, ...] = ("int8", "int4")
        if source.dtype == torch.bfloat16:
            forms = ("lossless", *forms)
        others.update({f"form={form}": replace(source, form=form) for form in forms})
    config = source.reader.config
    now = _least(Sizes.of(source), config, n_beside)
    least = {how: _least(Sizes.of(each), config, n_beside) for how, each in others.items()}
    return [f"{_size(n_bytes)} with {how}" for how, n_bytes in least.items() if n_bytes < now]


def _size(n_bytes: int) -> str:
    """Enough whole units, as it can be given."""
    unit = "MiB" if n_bytes > 2**24 else "KiB"
    return f"{ceil(n_bytes / parse_bytes(f'1{unit}'))}{unit}"


def _has_compiled_form(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> bool:
    served = device.type == "cpu" and dtype in FLOAT_FORMATS and config.topk_method != "hash"
    return served and not isinstance(library(), str)


def _hold_linears_(model: Transformer, source: Source) -> None:
    """Read linear layers that are held as codes, and put them in the place of the others."""
    for spec in tensors(model.config):
        name = spec.name.removesuffix(".weight")
        if spec.role == "routed" or spec.copy_of is not None or len(spec.shape) != 2:
            continue
        kind = source.kind(spec)
        if kind in _CODES and isinstance(model.get_submodule(name), Linear):
            rows = Rows.empty(*spec.shape, kind)
            source.read_into_(rows, spec.name)
            model.set_submodule(name, HeldLinear(rows))


def _hold_experts_(
    model: Transformer,
    source: Source,
    n_slots: int | None,
    room: Mapping[int, int],
    device: torch.device,
) -> dict[int, range]:
    """Give every layer its experts: all of them, or a cache of so many that all layers share.

    Returns:
        The slots of each layer that nothing is in.
    """
    config, layers = model.config, layers_with_experts(model.config)
    if not layers:
        return {}
    assert config.moe_intermediate_size
    width, inner = config.hidden_size, config.moe_intermediate_size
    kinds = expert_kinds(source, [spec for spec in tensors(config) if spec.role == "routed"])

    def rows(n: int) -> tuple[Rows, Rows]:
        rows_in = Rows.empty(n * 2 * inner, width, kinds[0], device)
        return rows_in, Rows.empty(n * width, inner, kinds[1], device)

    read, cache, shared = partial(read_expert_, source), None, None
    first = config.experts
    if n_slots is not None:
        first, shared = n_slots, rows(n_slots + sum(room.values()))
        parts = shared[0].part(0, n_slots * 2 * inner), shared[1].part(0, n_slots * width)
        cache = ExpertCache(dict.fromkeys(layers, config.experts), *parts, n_slots, read)
    spare: dict[int, range] = {}
    for layer in layers:
        n = room.get(layer, 0)
        experts = HeldExperts(layer, *(shared or rows(first + n)), cache)
        spare[layer] = range(first, first + n)
        for e in range(config.experts) if cache is None else ():
            read(layer, e, *experts.of_slot(e))
        first += n if shared else 0
        model.set_submodule(f"model.layers.{layer}.mlp.experts", experts)
    return spare
