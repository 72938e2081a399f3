"""A model with a cache is the model without one, and the cache holds what the papers say."""

from collections.abc import Callable

import pytest
import torch

from moesaic.config.model import ModelConfig
from moesaic.errors import RequestError
from moesaic.infer.cache import KeyValueCache
from moesaic.model.build import build_model
from moesaic.planner.memory import cache_values

Config = Callable[..., ModelConfig]


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
@pytest.mark.parametrize("passes", [[12], [5, 1, 1, 5], [1] * 12, [11, 1]])
def test_cached_logits_equal_uncached_logits(
    tiny_config: Config, generator: torch.Generator, family: str, passes: list[int]
) -> None:
    model = build_model(tiny_config(family))
    ids_BS = torch.randint(64, (2, 12), generator=generator)
    cache = KeyValueCache(capacity=4)
    with torch.no_grad():
        whole = model(ids_BS)
        parts = [model(fed, cache=cache) for fed in ids_BS.split(passes, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-4)


def test_key_value_heads_that_are_shared_are_cached_once(
    tiny_config: Config, generator: torch.Generator
) -> None:
    model = build_model(tiny_config("v1", num_attention_heads=4, num_key_value_heads=2))
    ids_BS = torch.randint(64, (1, 6), generator=generator)
    cache = KeyValueCache()
    with torch.no_grad():
        whole = model(ids_BS)
        parts = [model(fed, cache=cache) for fed in ids_BS.split(3, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-4)
    assert cache.bytes_per_token == 3 * 4 * (2 * 2 * 4)  # layers, float32, keys and values


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cached_token_takes_the_bytes_of_the_plan(
    tiny_config: Config, family: str, dtype: torch.dtype
) -> None:
    config = tiny_config(family)
    cache = KeyValueCache(capacity=10)
    with torch.no_grad():
        build_model(config, dtype)(torch.zeros(2, 3, dtype=torch.int64), cache=cache)
    per_token = config.num_hidden_layers * cache_values(config) * dtype.itemsize
    assert cache.bytes_per_token == per_token
    assert cache.n_bytes == 2 * 10 * per_token


def test_latent_attention_caches_the_latent_and_one_rotated_key(tiny_config: Config) -> None:
    config = tiny_config("v3")
    cache = KeyValueCache()
    with torch.no_grad():
        build_model(config)(torch.zeros(1, 1, dtype=torch.int64), cache=cache)
    assert (config.kv_lora_rank, config.qk_rope_head_dim) == (8, 4)
    assert cache.bytes_per_token == 3 * (8 + 4) * 4  # layers, values, float32


def test_room_doubles_when_it_runs_out_and_nothing_is_lost() -> None:
    cache = KeyValueCache(capacity=3)
    rows = torch.arange(10.0).view(1, 10, 1)
    sizes = []
    for place in range(10):
        (held,) = cache.extend(0, rows[:, place : place + 1])
        cache.advance(1, None)
        sizes.append(cache.n_bytes // 4)
        assert held.equal(rows[:, : place + 1])
    assert sizes == [3, 3, 3, 6, 6, 6, 12, 12, 12, 12]


def test_a_pass_that_failed_leaves_the_cache_as_it_was() -> None:
    cache = KeyValueCache()
    cache.extend(0, torch.ones(1, 2, 1))
    cache.advance(2, None)
    cache.extend(0, torch.full((1, 3, 1), 7.0))  # the pass fails before the next layer
    (held,) = cache.extend(0, torch.zeros(1, 1, 1))
    assert held.flatten().tolist() == [1, 1, 0]


def test_another_batch_is_refused(tiny_config: Config) -> None:
    model, cache = build_model(tiny_config("v2")), KeyValueCache()
    with torch.no_grad():
        model(torch.zeros(2, 3, dtype=torch.int64), cache=cache)
        with pytest.raises(RequestError) as error:
            model(torch.zeros(3, 1, dtype=torch.int64), cache=cache)
    assert str(error.value) == (
        "the cache holds 2 sequences and 3 were fed; feed the same batch, or begin a new cache"
    )


def test_gradients_through_a_cache_are_refused(tiny_config: Config) -> None:
    model = build_model(tiny_config("v2"))
    with pytest.raises(RequestError) as error:
        model(torch.zeros(1, 3, dtype=torch.int64), cache=KeyValueCache())
    assert str(error.value) == (
        "a cache keeps no gradients; run the model under torch.no_grad(), or without cache"
    )
