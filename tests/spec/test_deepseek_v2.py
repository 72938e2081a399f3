"""What the DeepSeek-V2 report (arXiv 2405.04434) prints, computed from the configurations."""

from moesaic.config import presets
from moesaic.planner.memory import cache_values, serve_memory
from moesaic.planner.params import params


def test_v2_has_the_size_of_its_checkpoint():
    size = params(presets.DEEPSEEK_V2, train_experts=None)
    assert size.total == 235_741_434_880  # printed 236 B
    assert round(size.activated / 1e9) == 21  # printed 21 B


def test_v2_lite_has_the_size_of_its_checkpoint():
    size = params(presets.DEEPSEEK_V2_LITE, train_experts=None)
    assert size.total == 15_706_484_224  # printed 15.7 B
    assert size.activated == 2_451_435_008  # printed 2.4 B: cut off, not rounded


def test_latent_attention_caches_576_values_per_token_and_layer():
    assert cache_values(presets.DEEPSEEK_V2) == 576
    assert cache_values(presets.DEEPSEEK_V2) == 4.5 * 128  # table 1


def test_multi_head_attention_of_the_same_heads_caches_32768():
    config = presets.DEEPSEEK_V2.changed(
        kv_lora_rank=None,
        q_lora_rank=None,
        qk_nope_head_dim=None,
        qk_rope_head_dim=None,
        v_head_dim=None,
        hidden_size=128 * 128,
    )
    assert cache_values(config) == 2 * 128 * 128 == 32_768


def test_the_cache_of_a_token_counts_every_layer_in_bfloat16():
    memory = serve_memory(params(presets.DEEPSEEK_V2), "bfloat16", cached_tokens=1000)
    assert memory.cache_per_token == 2 * 60 * 576
    assert memory.cache == 1000 * memory.cache_per_token
    assert memory.total == 2 * 235_741_434_880 + memory.cache


def test_three_of_eight_devices_limit_the_choice():
    free = presets.DEEPSEEK_V2.changed(topk_group=8)
    assert params(free).choices == 21_193_254_160  # C(160, 6)
    assert params(presets.DEEPSEEK_V2).choices == 2_270_854_160
