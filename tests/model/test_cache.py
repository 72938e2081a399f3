"""Feeding a sequence in pieces, with a cache, gives what feeding it whole gives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernels.agreement import Work
from model.list_cache import ListCache
from models import random_ids, random_model
from torch import Tensor

from moesaic.config.model import ModelConfig
from moesaic.errors import RequestError
from moesaic.model.transformer import Transformer

Build = Callable[..., ModelConfig]

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "v1": ("v1", {}),
    "v1 grouped heads": ("v1", {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "v2": ("v2", {}),
    "v3": ("v3", {}),
    # Absorbing pays for every piece, or for none: both forms of latent attention are reached.
    "v2 narrow latent": ("v2", {"kv_lora_rank": 2, "qk_nope_head_dim": 24, "v_head_dim": 24}),
    "v3 wide latent": ("v3", {"kv_lora_rank": 64, "qk_nope_head_dim": 2, "v_head_dim": 2}),
    "v3 halves rotated": ("v3", {"rope_interleave": False}),
}
PIECES = {
    "token by token": [1] * 24,
    "prompt, then token by token": [16, *[1] * 8],
    "even pieces": [6] * 4,
    "uneven pieces": [1, 13, 2, 8],
}


def in_pieces(model: Transformer, ids_BS: Tensor, pieces: list[int], **fed: Tensor) -> Tensor:
    """Logits of a whole row, fed piece by piece with one cache."""
    cache = ListCache()
    logits = []
    start = 0
    for size in pieces:
        part = slice(start, start + size)
        named = {name: tensor[:, part] for name, tensor in fed.items()}
        logits.append(model(ids_BS[:, part], cache=cache, **named))
        start += size
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES.keys())
@pytest.mark.parametrize(("family", "changes"), SHAPES.values(), ids=SHAPES.keys())
def test_cached_equals_uncached(
    tiny_config: Build, family: str, changes: dict[str, Any], pieces: list[int]
):
    config = tiny_config(family, initializer_range=0.2, **changes)
    model = random_model(config, dtype="float64")
    ids_BS = random_ids(config, 2, 24)
    torch.testing.assert_close(in_pieces(model, ids_BS, pieces), model(ids_BS))


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES.keys())
@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_cached_documents_equal_uncached_ones(tiny_config: Build, family: str, pieces: list[int]):
    """Rows of another number of documents each, as when prompts are padded on the left."""
    config = tiny_config(family, initializer_range=0.2)
    model = random_model(config, dtype="float64")
    ids_BS = random_ids(config, 2, 24)
    starts_BS = torch.zeros_like(ids_BS)
    starts_BS[0, 5] = starts_BS[1, 11] = starts_BS[1, 20] = 1
    documents_BS = starts_BS.cumsum(1)
    positions_BS = torch.stack([positions_in(row) for row in documents_BS])
    fed = {"documents_BS": documents_BS, "positions_BS": positions_BS}
    torch.testing.assert_close(in_pieces(model, ids_BS, pieces, **fed), model(ids_BS, **fed))


def positions_in(documents_S: Tensor) -> Tensor:
    lengths = documents_S.unique_consecutive(return_counts=True)[1].tolist()
    return torch.cat([torch.arange(length) for length in lengths])


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_positions_go_on_where_the_cache_ends(tiny_config: Build, family: str):
    config = tiny_config(family)
    model = random_model(config)
    ids_BS, cache = random_ids(config, 1, 12), ListCache()
    model(ids_BS[:, :7], cache=cache)
    given = ListCache()
    positions_BS = torch.arange(12).unsqueeze(0)
    model(ids_BS[:, :7], positions_BS=positions_BS[:, :7], cache=given)
    rest = model(ids_BS[:, 7:], cache=cache)
    assert torch.equal(rest, model(ids_BS[:, 7:], positions_BS=positions_BS[:, 7:], cache=given))
    assert cache.length == 12


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_the_last_position_alone_is_the_last_of_all(tiny_config: Build, family: str):
    config = tiny_config(family)
    model = random_model(config)
    ids_BS = random_ids(config, 3, 10)
    torch.testing.assert_close(model(ids_BS, last_only=True), model(ids_BS)[:, -1:])


@pytest.mark.parametrize("family", ["v2", "v3"])
def test_only_latents_and_the_shared_rotated_key_are_cached(tiny_config: Build, family: str):
    config = tiny_config(family)
    cache = ListCache()
    random_model(config)(random_ids(config, 2, 10), cache=cache)
    assert config.kv_lora_rank is not None
    for held in cache.layers.values():
        values = sum(part[0, 0].numel() for part in held[0])
        assert values == config.kv_lora_rank + config.rope_dim


@pytest.mark.parametrize("family", ["v2", "v3"])
def test_decoding_does_not_expand_what_is_cached(tiny_config: Build, family: str):
    """A longer cache costs less per position than bringing its latents back to keys and values."""
    config = tiny_config(family)
    model = random_model(config)

    def products(length: int) -> int:
        cache = ListCache()
        model(random_ids(config, 1, length), cache=cache)
        with Work() as work:
            model(random_ids(config, 1, 1), cache=cache)
        return work.products

    assert config.kv_lora_rank is not None
    expanded = config.num_attention_heads * (
        config.qk_head_dim - config.rope_dim + config.value_dim
    )
    per_position = config.num_hidden_layers * config.kv_lora_rank * expanded
    assert products(120) - products(60) < 60 * per_position


@pytest.mark.parametrize("family", ["v2", "v3"])
def test_a_whole_sequence_is_not_compared_in_the_latent_space(tiny_config: Build, family: str):
    """Where the latent is wide, that would cost more than keys and values of their own."""
    config = tiny_config(family, kv_lora_rank=256, num_hidden_layers=1)
    model = random_model(config)
    with Work() as work:
        model(random_ids(config, 1, 100))
    scores_in_latent_space = config.num_attention_heads * 100 * 100 * 256
    assert work.products < scores_in_latent_space


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_every_layer_is_cached_but_no_prediction_module(tiny_config: Build, family: str):
    config = tiny_config(family)
    cache = ListCache()
    random_model(config)(random_ids(config, 1, 5), cache=cache)
    assert sorted(cache.layers) == list(range(config.num_hidden_layers))


@pytest.mark.parametrize("first", [True, False])
def test_documents_in_some_passes_of_a_cache_only_are_refused(tiny_config: Build, first: bool):
    config = tiny_config("v2")
    model, cache = random_model(config), ListCache()
    ids_BS = random_ids(config, 1, 4)
    documents_BS = torch.zeros_like(ids_BS)
    model(ids_BS, documents_BS=documents_BS if first else None, cache=cache)
    with pytest.raises(RequestError, match="must be given in every pass of a cache, or in none"):
        model(ids_BS, documents_BS=None if first else documents_BS, cache=cache)
