"""Rates, times and bounds."""

import pytest

from moesaic.config.presets import DEEPSEEK_MOE_2B_DENSE, DEEPSEEK_V2_LITE
from moesaic.planner.devices import get_device
from moesaic.planner.flops import forward_flops, mean_context, train_flops
from moesaic.planner.memory import serve_memory
from moesaic.planner.params import params
from moesaic.planner.throughput import (
    decode_bound,
    prefill_bound,
    seconds_for,
    tokens_in,
    train_rate,
    utilisation,
    weights_read,
)

H100, SIZE = get_device("h100-sxm"), params(DEEPSEEK_V2_LITE, train_experts=None)
MEMORY = serve_memory(SIZE, "bfloat16", cached_tokens=0)


def test_v2_lite_at_28_percent_of_an_h100_trains_17_thousand_tokens_per_second():
    work = train_flops(SIZE, mean_context(4096)).total
    assert train_rate(H100, work, mfu=0.28) == pytest.approx(16_900, rel=0.01)


def test_a_rate_and_its_utilisation_are_inverse():
    assert utilisation(H100, 1e10, train_rate(H100, 1e10, mfu=0.35)) == pytest.approx(0.35)


def test_tokens_and_seconds_are_inverse():
    assert tokens_in(seconds_for(1_000_000, 22_500) + 1e-6, 22_500) == 1_000_000


def test_one_sequence_reads_the_activated_weights_and_its_cache():
    read = 2 * SIZE.activated + MEMORY.cache_per_token * 1000
    assert decode_bound(H100, SIZE, MEMORY, context=1000) == pytest.approx(H100.bandwidth / read)


def test_sequences_that_share_experts_decode_more_than_one_alone():
    rates = [decode_bound(H100, SIZE, MEMORY, 1000, batch) for batch in (1, 16, 64)]
    assert rates == sorted(rates)
    assert rates[1] < 16 * rates[0]


def test_many_sequences_read_every_expert_and_none_twice():
    assert weights_read(SIZE, 1) == SIZE.activated
    assert weights_read(SIZE, 10_000) == pytest.approx(SIZE.total - SIZE.roles["embedding"])


def test_a_dense_model_reads_the_same_for_any_batch():
    dense = params(DEEPSEEK_MOE_2B_DENSE, train_experts=None)
    assert weights_read(dense, 1) == weights_read(dense, 64) == dense.activated


def test_very_many_sequences_are_bound_by_products():
    rate = decode_bound(H100, SIZE, MEMORY, context=0, batch=100_000)
    assert rate == pytest.approx(H100.bf16 / forward_flops(SIZE, 0))


def test_prefill_is_bound_by_products():
    work = forward_flops(SIZE, mean_context(1000))
    assert prefill_bound(H100, SIZE, 1000) == H100.bf16 / work
