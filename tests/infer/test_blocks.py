"""Caches in blocks: rooms, owners, and passes over sequences of different lengths."""

from math import prod

import pytest
import torch
from models import random_ids, random_model
from torch import Tensor

from moesaic.config.presets import get_preset
from moesaic.errors import RequestError
from moesaic.infer.blocks import BlockPool, Held, PagedCache, cached_parts
from moesaic.infer.prompts import PromptBatch
from moesaic.model.transformer import Transformer

FAMILIES = ("tiny-v1", "tiny-v2", "tiny-v3")


def feed(model: Transformer, held: list[Held], rows: list[list[int]]) -> Tensor:
    """Logits of the last token of every row, [B, V]."""
    batch = PromptBatch.of(rows)
    for one, row in zip(held, rows, strict=True):
        one.make_room(len(row))
    fill = torch.tensor([batch.ids_BS.shape[1] - len(row) for row in rows]).unsqueeze(1)
    lengths = torch.tensor([one.length for one in held]).unsqueeze(1)
    positions_BS = (torch.arange(batch.ids_BS.shape[1]) - fill + lengths).clamp(min=0)
    documents_BS = batch.documents_BS
    if documents_BS is None:
        documents_BS = torch.ones_like(batch.ids_BS)
    cache = PagedCache(held, [len(row) for row in rows])
    if cache.documents is None:
        documents_BS = None
    with torch.inference_mode():
        logits_BSV = model(batch.ids_BS, positions_BS, documents_BS, cache=cache, last_only=True)
    return logits_BSV[:, -1]


@pytest.mark.parametrize("family", FAMILIES)
def test_sequences_of_any_lengths_give_what_each_gives_alone(family: str):
    config = get_preset(family)
    model = random_model(config).requires_grad_(False)
    pool = BlockPool(config, 32, block=8, dtype=torch.float32)
    ids = [random_ids(config, n, seed=n).tolist() for n in (5, 19, 12)]
    alone = [model(torch.tensor([row]))[0] for row in ids]
    held = [Held(pool) for _ in ids]
    first_BV = feed(model, held, [row[:n] for row, n in zip(ids, (3, 9, 12), strict=True)])
    for row, n in enumerate((3, 9, 12)):
        torch.testing.assert_close(first_BV[row], alone[row][n - 1], atol=1e-4, rtol=1e-4)
    then_BV = feed(model, held[:2], [ids[0][3:5], ids[1][9:13]])
    for row, n in enumerate((5, 13)):
        torch.testing.assert_close(then_BV[row], alone[row][n - 1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("preset", [*FAMILIES, "deepseek-v2-lite", "deepseek-moe-16b"])
def test_a_position_takes_exactly_what_the_formula_says(preset: str):
    config = get_preset(preset)
    pool = BlockPool(config, 2, block=4)
    values = sum(map(prod, cached_parts(config)))
    if config.is_latent:
        assert values == (config.kv_lora_rank or 0) + (config.qk_rope_head_dim or 0)
    else:
        assert values == 2 * config.num_key_value_heads * config.qk_head_dim
    depth = config.num_hidden_layers + config.num_nextn_predict_layers
    assert pool.bytes_per_position == 2 * depth * values
    assert pool.n_bytes == 2 * 4 * pool.bytes_per_position


def test_blocks_are_free_again_when_their_last_owner_leaves():
    pool = BlockPool(get_preset("tiny-v3"), 4, block=4)
    one, other = Held(pool), Held(pool)
    one.make_room(9)
    one.length = 9
    assert pool.n_free == 1
    other.blocks.append(one.blocks[0])
    pool.share(one.blocks[0])
    one.release()
    assert pool.n_free == 3
    assert pool.owners(other.blocks[0]) == 1
    other.release()
    assert pool.n_free == 4


def test_a_sequence_forgets_what_it_is_cut_by():
    pool = BlockPool(get_preset("tiny-v3"), 4, block=4)
    held = Held(pool)
    held.make_room(9)
    held.length = 9
    held.cut(4)
    assert (len(held.blocks), held.length, pool.n_free) == (1, 4, 3)


def test_where_there_is_no_room_nothing_is_taken():
    pool = BlockPool(get_preset("tiny-v3"), 2, block=4)
    held = Held(pool)
    with pytest.raises(RequestError, match="9 more positions need 3 blocks and 2 are free"):
        held.make_room(9)
    assert pool.n_free == 2
    held.make_room(8)
    with pytest.raises(RequestError, match="all 2 blocks of 4 positions are taken"):
        pool.take()
