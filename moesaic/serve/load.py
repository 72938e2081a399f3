"""From a checkpoint folder, and shards of it, to what a server serves."""

from collections.abc import Mapping
from pathlib import Path

import torch

from moesaic.checkpoint.load import Reader
from moesaic.config.serve import ServeConfig
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import ConfigError
from moesaic.esft.manifest import read_keys
from moesaic.infer.batching import BatchEngine
from moesaic.infer.blocks import BLOCK, BlockPool
from moesaic.infer.decoder import Decoder, build_decoder
from moesaic.infer.expert_load import ExpertLoad
from moesaic.infer.load import load_held, load_spacious
from moesaic.infer.spare import SpareExperts
from moesaic.model.build import torch_dtype
from moesaic.model.transformer import Transformer
from moesaic.serve.served import Served
from moesaic.serve.shards import Shards, room_for


def load_served(
    folder: Path | str, config: ServeConfig, shards: Mapping[str, Path] | None = None
) -> Served:
    """The model of a checkpoint folder under the folder's name, and shards beside it.

    Args:
        folder: the checkpoint.
        config: how to hold it, and what to let in.
        shards: folders of shards by their names; what they change is held as the model is.

    Raises:
        ConfigError: if the device is missing, the cache smaller than a block, or the memory too
            small.
        CheckpointError: if the folder is incomplete or damaged.
        DataError: if it has no tokenizer.
        ShardError: if a shard cannot be loaded.
    """
    n_blocks, device = _blocks(config), _device(config)
    tokenizer, reader = Tokenizer.load(folder), Reader(folder)
    pool = BlockPool(reader.config, n_blocks, dtype=torch_dtype(config.dtype), device=device)
    load = ExpertLoad(reader.config)

    def decode(model: Transformer) -> Decoder:
        return build_decoder(model, pool, config.form, load)

    if shards or config.spare_experts:
        spare = _load_spacious(reader, shards or {}, config, device)
        model, beside = spare.model, Shards(reader, spare, decode, read_keys(config.trusted))
        for name, shard in (shards or {}).items():
            beside.load(name, shard)
    else:
        beside = None
        model = load_held(folder, config.dtype, device, config.form, config.memory)
    engine = BatchEngine(decode(model), tokenizer, config, load)
    name = Path(folder).resolve().name
    return Served(name, engine, tokenizer, model.config.max_position_embeddings, beside)


def _load_spacious(
    reader: Reader, shards: Mapping[str, Path], config: ServeConfig, device: str
) -> SpareExperts:
    """A model with room for the experts of shards, those given and those to come."""
    room = room_for(shards.values(), reader, config.spare_experts)
    return load_spacious(reader, room, config.dtype, device, config.form, config.memory)


def _blocks(config: ServeConfig) -> int:
    if config.cache_tokens < BLOCK:
        raise ConfigError(
            f"cache_tokens={config.cache_tokens} is less than a block of {BLOCK}; raise it"
        )
    return config.cache_tokens // BLOCK


def _device(config: ServeConfig) -> str:
    there = torch.cuda.is_available()
    if config.device == "cuda" and not there:
        raise ConfigError("device='cuda', but PyTorch finds no GPU; set device='cpu'")
    return "cuda" if there and config.device != "cpu" else "cpu"
