"""Beginnings in common are computed once, and go when room is needed: ends first, oldest first."""

from collections.abc import Callable

import pytest
import torch

from moesaic.config.model import ModelConfig
from moesaic.infer.blocks import BlockPool, Held
from moesaic.infer.prefix import Prefixes


@pytest.fixture
def pool(tiny_config: Callable[..., ModelConfig]) -> BlockPool:
    return BlockPool(tiny_config("v2"), 8, block=4, dtype=torch.float32)


def computed(pool: BlockPool, n: int) -> Held:
    """A sequence that holds ``n`` positions."""
    held = Held(pool)
    held.make_room(n)
    held.length = n
    return held


def test_a_sequence_begins_with_the_whole_blocks_of_another(pool: BlockPool):
    prefixes, first = Prefixes(pool), computed(pool, 10)
    ids = list(range(10))
    prefixes.keep(ids, first)
    second = prefixes.begin([*ids, 1, 2, 3])
    assert (second.length, second.blocks) == (8, first.blocks[:2])
    assert len(prefixes) == 2


def test_the_last_id_is_always_left_to_be_fed(pool: BlockPool):
    prefixes = Prefixes(pool)
    prefixes.keep(range(8), computed(pool, 8))
    assert prefixes.begin(list(range(8))).length == 4


def test_a_block_is_found_only_after_the_same_beginning(pool: BlockPool):
    prefixes = Prefixes(pool)
    prefixes.keep(range(8), computed(pool, 8))
    assert prefixes.begin([9, 1, 2, 3, 4, 5, 6, 7, 8]).length == 0
    assert prefixes.begin([0, 1, 2, 3, 9, 5, 6, 7, 8]).length == 4


def test_blocks_outlive_their_sequence_until_room_is_needed(pool: BlockPool):
    prefixes, held = Prefixes(pool), computed(pool, 12)
    prefixes.keep(range(12), held)
    assert (pool.n_free, prefixes.n_idle) == (5, 0)
    assert not prefixes.make_free(6)
    held.release()
    assert (pool.n_free, prefixes.n_idle) == (5, 3)
    assert prefixes.make_free(6)
    assert (pool.n_free, len(prefixes)) == (6, 2)


def test_what_was_used_longest_ago_goes_first_and_ends_before_beginnings(pool: BlockPool):
    prefixes = Prefixes(pool)
    for start in (0, 100):
        held = computed(pool, 12)
        prefixes.keep(range(start, start + 12), held)
        held.release()
    prefixes.begin(list(range(9))).release()
    assert prefixes.make_free(5)
    assert prefixes.begin(list(range(13))).length == 8
    assert prefixes.begin(list(range(100, 113))).length == 4


def test_everything_is_given_back(pool: BlockPool):
    prefixes, held = Prefixes(pool), computed(pool, 12)
    prefixes.keep(range(12), held)
    prefixes.begin(list(range(12))).release()
    held.release()
    prefixes.clear()
    assert pool.n_free == 8
