"""Commands for vLLM and SGLang: what is asked of them, and what is refused."""

import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from moesaic.config.launch import LaunchConfig
from moesaic.config.model import Fp8Blocks, ModelConfig
from moesaic.config.packed import packed_groups
from moesaic.config.presets import get_preset
from moesaic.errors import ConfigError, DataError
from moesaic.planner.params import plan
from moesaic.serve.engines import ENGINES, Cluster, Engine
from moesaic.serve.launch import Launch, plan_launch
from moesaic.serve.layout import Layout, need

Make = Callable[..., Launch]
DENSE = dict.fromkeys(
    ("n_routed_experts", "n_shared_experts", "num_experts_per_tok", "moe_intermediate_size")
)
V3 = get_preset("deepseek-v3").changed(num_hidden_layers=4)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """``make("deepseek-v2-lite", "vllm", gpus=8, context=4096)``: what is to be run."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/tokenizer.json").touch()

    def build(model: str | ModelConfig, engine: Engine, **asked: Any) -> Launch:
        config = get_preset(model) if isinstance(model, str) else model
        where = {key: asked.pop(key) for key in ("gpus", "nodes", "redundant") if key in asked}
        settings = LaunchConfig.parse(asked)
        return plan_launch(tmp_path / "model", config, engine, Cluster(**where), settings)

    return build


def options(command: tuple[str, ...]) -> dict[str, str]:
    """By name; those without a value have an empty one."""
    words = [*command, "--"]
    return {
        word: "" if after.startswith("--") else after
        for word, after in pairwise(words)
        if word.startswith("--")
    }


def has(command: tuple[str, ...], wanted: Mapping[str, str]) -> bool:
    return wanted.items() <= options(command).items()


def test_one_gpu_is_asked_for_nothing_that_is_spread(make: Make):
    (vllm,) = make("deepseek-v2-lite", "vllm", context=8192).commands
    assert vllm[:2] == ("vllm", "serve")
    assert vllm[2].endswith("/model")
    assert options(vllm) == {
        "--served-model-name": "model",
        "--dtype": "bfloat16",
        "--max-model-len": "8192",
        "--gpu-memory-utilization": "0.9",
        "--tensor-parallel-size": "1",
        "--host": "127.0.0.1",
        "--port": "8000",
    }
    (sglang,) = make("deepseek-v2-lite", "sglang", name="lite", port=30000).commands
    assert sglang[:3] == ("python3", "-m", "sglang.launch_server")
    assert options(sglang) == {
        "--model-path": sglang[4],
        "--served-model-name": "lite",
        "--dtype": "bfloat16",
        "--context-length": "163840",
        "--mem-fraction-static": "0.9",
        "--tp-size": "1",
        "--host": "127.0.0.1",
        "--port": "30000",
    }


def test_a_machine_shares_heads_and_spreads_experts(make: Make):
    (vllm,) = make(V3, "vllm", gpus=8).commands
    assert has(vllm, {"--tensor-parallel-size": "8", "--enable-expert-parallel": ""})
    assert "--data-parallel-size" not in vllm
    (sglang,) = make(V3, "sglang", gpus=8).commands
    assert has(sglang, {"--tp-size": "8", "--ep-size": "8"})
    assert "--dp-size" not in sglang


def test_with_data_attention_every_gpu_has_sequences_of_its_own(make: Make):
    (vllm,) = make(V3, "vllm", gpus=8, attention="data").commands
    assert has(vllm, {"--tensor-parallel-size": "1", "--data-parallel-size": "8"})
    (sglang,) = make(V3, "sglang", gpus=8, attention="data").commands
    wanted = {"--tp-size": "8", "--attn-dp-size": "8", "--ep-size": "8"}
    assert has(sglang, wanted)


def test_several_machines_have_a_command_each(make: Make):
    asked = {"gpus": 8, "nodes": 2, "first_address": "10.0.0.1", "host": "0.0.0.0"}
    first, second = make(V3, "vllm", **asked).commands
    shared = {
        "--tensor-parallel-size": "8",
        "--data-parallel-size": "2",
        "--data-parallel-size-local": "1",
        "--data-parallel-address": "10.0.0.1",
        "--data-parallel-rpc-port": "13345",
    }
    assert has(first, {**shared, "--host": "0.0.0.0"})
    assert has(second, {**shared, "--data-parallel-start-rank": "1", "--headless": ""})
    assert "--headless" not in first
    assert "--host" not in second
    first, second = make(V3, "sglang", **asked).commands
    shared = {"--tp-size": "16", "--attn-dp-size": "2", "--ep-size": "16", "--nnodes": "2"}
    shared["--dist-init-addr"] = "10.0.0.1:13345"
    assert has(first, {**shared, "--node-rank": "0"})
    assert has(second, {**shared, "--node-rank": "1"})


def test_experts_have_copies_that_the_engines_move(make: Make):
    (vllm,) = make(V3, "vllm", gpus=8, redundant=32).commands
    assert has(vllm, {"--enable-eplb": "", "--eplb-config": '{"num_redundant_experts": 32}'})
    (sglang,) = make(V3, "sglang", gpus=8, redundant=32).commands
    assert has(sglang, {"--enable-eplb": "", "--ep-num-redundant-experts": "32"})


def test_a_placement_is_kept_by_sglang(make: Make, tmp_path: Path):
    file = tmp_path / "placement.json"
    rows = [[slot % 64 for slot in range(72)] for _ in range(27)]
    file.write_text(json.dumps({"physical_to_logical_map": rows}))
    asked = {"gpus": 8, "redundant": 8, "placement": str(file)}
    (command,) = make("deepseek-v2-lite", "sglang", **asked).commands
    assert has(command, {"--init-expert-location": str(file), "--ep-num-redundant-experts": "8"})
    assert "--enable-eplb" not in command
    with pytest.raises(ConfigError, match="vllm reads no placement"):
        make("deepseek-v2-lite", "vllm", **asked)
    with pytest.raises(DataError, match="is not for 27 layers of 64 slots"):
        make("deepseek-v2-lite", "sglang", **{**asked, "redundant": 0})
    file.write_text("[]")
    with pytest.raises(DataError, match="has no placement"):
        make("deepseek-v2-lite", "sglang", **asked)


@pytest.mark.parametrize("name", ["placement.json", "placement"])
def test_a_placement_that_sglang_would_not_read_is_refused(make: Make, tmp_path: Path, name: str):
    rows = [[slot % 64 for slot in range(72)] for _ in range(27)]
    beside = {"kind": "placement"} if name.endswith(".json") else {}
    (tmp_path / name).write_text(json.dumps({"physical_to_logical_map": rows, **beside}))
    with pytest.raises(DataError, match=r"its name ends in \.json, and it has nothing beside"):
        make("deepseek-v2-lite", "sglang", gpus=8, redundant=8, placement=str(tmp_path / name))


def test_heads_are_shared_by_no_more_gpus_than_divide_them(make: Make):
    config = get_preset("deepseek-v2-lite").changed(n_routed_experts=72)  # with 16 heads
    assert make(config, "vllm", gpus=24).layout == Layout(8, 3, True)


def test_weights_that_share_a_scale_stay_together(make: Make):
    """V2-Lite's dense layer is 10944 wide: 85.5 blocks of 128, and 171 groups of 64."""
    config = get_preset("deepseek-v2-lite")
    assert make(config, "vllm", gpus=8).layout.tensor == 8
    blocks = config.changed(quantization_config=Fp8Blocks(), intermediate_size=11008)
    assert make(blocks, "vllm", gpus=8).layout == Layout(2, 4, True)
    groups = config.changed(quantization_config=packed_groups(4, 64, ()))
    assert make(groups, "vllm", gpus=8).layout == Layout(1, 8, True)


def test_an_expert_group_is_told_where_the_file_has_none(make: Make):
    config = get_preset("deepseek-v2-lite").changed(n_group=None, topk_group=None)
    groups = '{"n_group": 1, "topk_group": 1}'
    assert has(make(config, "vllm").commands[0], {"--hf-overrides": groups})
    assert has(make(config, "sglang").commands[0], {"--json-model-override-args": groups})


def test_v1_is_read_by_vllm_without_the_code_that_sglang_needs_beside_it(
    make: Make, tmp_path: Path
):
    (vllm,) = make("deepseek-moe-16b", "vllm", gpus=4).commands
    known = json.loads(options(vllm)["--hf-overrides"])
    assert known == {
        "model_type": "kimi_linear",
        "topk_method": "greedy",
        "num_experts": 64,
        "qk_nope_head_dim": 0,
        "qk_rope_head_dim": 0,
    }
    assert "--enable-expert-parallel" in vllm
    assert "--trust-remote-code" not in vllm
    with pytest.raises(ConfigError, match=r"only with the configuration_deepseek\.py"):
        make("deepseek-moe-16b", "sglang")
    (tmp_path / "model/configuration_deepseek.py").touch()
    (sglang,) = make("deepseek-moe-16b", "sglang", gpus=4, attention="data").commands
    assert has(sglang, {"--trust-remote-code": "", "--tp-size": "1", "--dp-size": "4"})
    assert not {"--ep-size", "--attn-dp-size"} & set(sglang)
    with pytest.raises(ConfigError, match="only with latent attention"):
        make("deepseek-moe-16b", "sglang", gpus=4, nodes=2, first_address="a")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tie_word_embeddings": True}, "tie_word_embeddings is true"),
        ({"rope_interleave": False}, "rotated pairs lie otherwise"),
        ({"norm_topk_prob": True, "routed_scaling_factor": 2.0}, "are scaled too there"),
        (DENSE, "a model without experts is not read"),
        (
            {"quantization_config": Fp8Blocks()},
            "intermediate_size gives 10944 rows, no whole blocks",
        ),
        (
            {"quantization_config": packed_groups(4, 64, ()), "moe_intermediate_size": 1440},
            "experts have rows of 2048 and 1440 weights, not all of whole groups of 64",
        ),
    ],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_that_would_be_computed_otherwise_is_refused(
    make: Make, engine: Engine, changes: dict[str, Any], reason: str
):
    with pytest.raises(ConfigError, match=f"{engine} cannot serve .*{reason}.*moesaic serve"):
        make(get_preset("deepseek-v2-lite").changed(**changes), engine)


def test_groups_of_one_expert_are_refused(make: Make):
    config = V3.changed(n_group=256, topk_group=128)
    with pytest.raises(ConfigError, match="it scores a group by two experts, and n_group=256"):
        make(config, "vllm")


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"gpus": 0}, "give at least 1, 1 and 0"),
        ({"nodes": 2}, "--set first_address=ADDRESS"),
        ({"machine": 1}, "machine=1 is not one of --nodes 1"),
        ({"redundant": 8}, "more than one GPU"),
        ({"gpus": 6, "redundant": 4}, "set redundant to 8"),
        ({"gpus": 3}, "set redundant to 2"),
        ({"context": 10**6}, "more than max_position_embeddings=163840"),
    ],
)
def test_what_cannot_be_is_told(make: Make, asked: dict[str, Any], reason: str):
    with pytest.raises(ConfigError, match=reason):
        make("deepseek-v2-lite", "vllm", **asked)


def test_packed_integers_are_served_but_not_moved(make: Make):
    config = get_preset("deepseek-v2-lite").changed(quantization_config=packed_groups(4, 64, ()))
    assert make(config, "vllm", gpus=2).commands
    with pytest.raises(ConfigError, match="in BF16 or FP8 blocks there"):
        make(config, "vllm", gpus=2, redundant=2)


def test_a_folder_without_a_tokenizer_is_refused(make: Make, tmp_path: Path):
    (tmp_path / "model/tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"it has no tokenizer\.json"):
        make("deepseek-v2-lite", "vllm")


def test_one_gpu_holds_every_weight_once():
    config = get_preset("deepseek-v2-lite")
    found = need(config, Layout(1, 1, True), 0)
    assert found.weights == 2 * plan(config).total
    assert found.cache_per_token == 2 * 27 * (512 + 64)


def test_spread_experts_and_shared_heads_leave_each_gpu_its_part():
    config = get_preset("deepseek-v2-lite")
    roles = plan(config).roles
    data = need(config, Layout(1, 8, True), 0)
    routed = 2 * roles["routed"]
    assert data.weights == 2 * plan(config).total - routed + routed // 8
    tensor = need(config, Layout(8, 1, True), 0)
    assert tensor.weights < data.weights
    copies = need(config, Layout(8, 1, True), 8)
    assert copies.weights - tensor.weights == pytest.approx(routed / 64, rel=1e-6)
    assert (copies.cache_per_token, data.groups) == (tensor.cache_per_token, 8)


def test_what_does_not_fit_is_refused_and_what_fits_has_room(make: Make):
    fp8 = get_preset("deepseek-v3").changed(quantization_config=Fp8Blocks())
    with pytest.raises(ConfigError, match=r"one of 8 GPUs would hold 8\d\.\d GB of weights"):
        make(fp8, "vllm", gpus=8, device="h100-sxm", context=32768)
    (note,) = make(fp8, "vllm", gpus=8, device="h200", context=32768).notes
    assert "on each of 8 GPUs, estimated; room to cache" in note
    (note,) = make(fp8, "vllm", gpus=8).notes
    assert "--set device=h100-sxm" in note
