"""A checkpoint as a GGUF file, read with the reader of the package gguf."""

from collections.abc import Callable
from math import log
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from models import random_model

from moesaic.checkpoint.gguf import FORMS, Form, Written, write_gguf
from moesaic.checkpoint.gguf_tensors import as_neighbours
from moesaic.checkpoint.load import Reader
from moesaic.checkpoint.quantise import quantise_folder
from moesaic.checkpoint.save import save
from moesaic.config.model import ModelConfig
from moesaic.errors import CheckpointError, ConfigError
from moesaic.model.rope import Rope
from moesaic.planner.inventory import tensors

Export = Callable[..., tuple[gguf.GGUFReader, Reader, Written]]
_WIDE = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32}
_LATENT = {"kv_lora_rank": 32, "qk_nope_head_dim": 32, "v_head_dim": 32}


@pytest.fixture
def export(tmp_path: Path, tiny_config: Callable[..., ModelConfig]) -> Export:
    """``export("v3", "bf16", **changes)``: the file, the checkpoint and what was told."""

    def build(family: str, form: Form = "f32", **changes: Any) -> Any:
        widths = _WIDE if family == "v1" else {**_WIDE, **_LATENT}
        config = tiny_config(family, **{**widths, **changes})
        if not (tmp_path / "model").exists():
            save(tmp_path / "model", config, random_model(config).state_dict(), "float32")
        source, out = Reader(tmp_path / "model"), tmp_path / f"model.{form}.gguf"
        written = write_gguf(source, out, form, None, None, lambda n: None)
        return gguf.GGUFReader(out), source, written

    return build


def values(file: gguf.GGUFReader) -> dict[str, np.ndarray]:
    """What the tensors stand for, by name."""
    return {
        one.name: gguf.dequantize(one.data, one.tensor_type).reshape(tuple(reversed(one.shape)))
        for one in file.tensors
    }


def kinds(file: gguf.GGUFReader) -> dict[str, str]:
    return {one.name: one.tensor_type.name for one in file.tensors}


def key(file: gguf.GGUFReader, name: str) -> Any:
    arch = file.fields["general.architecture"].contents()
    found = file.fields.get(name) or file.fields.get(f"{arch}.{name}")
    return None if found is None else found.contents()


def test_a_v1_layer_has_the_names_that_llama_cpp_gives_it(export: Export) -> None:
    file, source, written = export("v1")
    found = values(file)
    layer = {name.removeprefix("blk.1.") for name in found if name.startswith("blk.1.")}
    assert layer == {
        *("attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight"),
        *("attn_output.weight", "ffn_norm.weight", "ffn_gate_inp.weight"),
        *("ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight"),
        *("ffn_gate_shexp.weight", "ffn_up_shexp.weight", "ffn_down_shexp.weight"),
    }
    assert written.architecture == "deepseek"
    assert written.tensors == len(found)
    assert written.notes == ()
    experts = found["blk.1.ffn_up_exps.weight"]
    assert experts.shape == (8, 32, 64)
    for expert in range(8):
        name = f"model.layers.1.mlp.experts.{expert}.up_proj.weight"
        assert np.array_equal(experts[expert], source.read(name).numpy())


def test_a_v3_layer_has_its_latent_projection_in_two(export: Export) -> None:
    file, source, written = export("v3", q_lora_rank=32)
    found = values(file)
    layer = {name.removeprefix("blk.2.") for name in found if name.startswith("blk.2.attn")}
    assert layer == {
        *("attn_norm.weight", "attn_q_a.weight", "attn_q_a_norm.weight", "attn_q_b.weight"),
        *("attn_kv_a_mqa.weight", "attn_kv_a_norm.weight", "attn_k_b.weight", "attn_v_b.weight"),
        "attn_output.weight",
    }
    joint = source.read("model.layers.2.self_attn.kv_b_proj.weight").unflatten(0, (2, 64)).numpy()
    assert np.array_equal(found["blk.2.attn_k_b.weight"], joint[:, :32].swapaxes(1, 2))
    assert np.array_equal(found["blk.2.attn_v_b.weight"], joint[:, 32:])
    bias = source.read("model.layers.2.mlp.gate.e_score_correction_bias").numpy()
    assert np.array_equal(found["blk.2.exp_probs_b.bias"], bias)
    assert written.architecture == "deepseek2"


def test_prediction_modules_are_left_out_and_that_is_told(export: Export) -> None:
    file, _, written = export("v3")
    assert not [one for one in values(file) if one.startswith("blk.3.")]
    assert key(file, "block_count") == 3
    assert written.notes[0].startswith("the prediction modules are left out")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_every_weight_is_there_in_the_form_asked_for(
    export: Export, family: str, form: Form
) -> None:
    file, source, _ = export(family)
    exact, config = values(file), source.config
    kept = [spec for spec in tensors(config) if (spec.layer or 0) < config.num_hidden_layers]
    assert sum(map(np.size, exact.values())) == sum(spec.size for spec in kept)
    if form == "f32":
        return
    for one in export(family, form)[0].tensors:
        wanted = np.ascontiguousarray(exact[one.name])
        assert gguf.quantize(wanted, one.tensor_type).tobytes() == one.data.tobytes()
        is_exact = wanted.ndim == 1 or "ffn_gate_inp" in one.name
        assert (one.tensor_type.name == "F32") == is_exact


def test_in_four_bits_what_is_delicate_has_eight(export: Export) -> None:
    found = kinds(export("v2", "q4_0")[0])
    assert found["token_embd.weight"] == found["output.weight"] == "Q8_0"
    assert found["blk.1.attn_k_b.weight"] == found["blk.1.attn_v_b.weight"] == "Q8_0"
    assert found["blk.1.ffn_up_exps.weight"] == found["blk.1.attn_output.weight"] == "Q4_0"


def test_rows_that_are_not_whole_blocks_stay_in_bfloat16_and_that_is_told(export: Export) -> None:
    file, _, written = export("v1", "q8_0", moe_intermediate_size=24, n_shared_experts=1)
    found = kinds(file)
    assert found["blk.1.ffn_down_exps.weight"] == found["blk.2.ffn_down_shexp.weight"] == "BF16"
    assert found["blk.1.ffn_up_exps.weight"] == "Q8_0"
    assert "4 tensors with rows that are not whole blocks of 32 stay" in written.notes[0]


def test_a_checkpoint_in_integers_is_exported_as_what_it_stands_for(
    export: Export, tmp_path: Path
) -> None:
    _, source, _ = export("v2")
    quantise_folder(source, tmp_path / "four", "4", 32, lambda spec: None)
    quantised = Reader(tmp_path / "four")
    write_gguf(quantised, tmp_path / "four.gguf", "f32", None, None, lambda n: None)
    found = values(gguf.GGUFReader(tmp_path / "four.gguf"))["blk.1.ffn_gate_exps.weight"]
    name = "model.layers.1.mlp.experts.5.gate_proj.weight"
    assert np.array_equal(found[5], quantised.read(name).numpy())


def test_the_keys_say_what_the_model_is(export: Export) -> None:
    file, _, _ = export("v3", q_lora_rank=32, routed_scaling_factor=2.5)
    wanted = {
        "block_count": 3,
        "context_length": 128,
        "embedding_length": 64,
        "vocab_size": 64,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": 32,
        "attention.kv_lora_rank": 32,
        "attention.key_length": 36,
        "attention.value_length": 32,
        "attention.key_length_mla": 36,
        "attention.value_length_mla": 32,
        "rope.dimension_count": 4,
        "leading_dense_block_count": 1,
        "expert_count": 8,
        "expert_used_count": 3,
        "expert_shared_count": 2,
        "expert_feed_forward_length": 32,
        "expert_weights_scale": 2.5,
        "expert_weights_norm": True,
        "expert_gating_func": 2,
        "expert_group_count": 4,
        "expert_group_used_count": 2,
        "tokenizer.ggml.model": "no_vocab",
        "general.name": "model",
    }
    assert {name: key(file, name) for name in wanted} == wanted


def test_yarn_keys_are_those_of_the_published_models(export: Export) -> None:
    file, _, _ = export("v2")  # mscale = mscale_all_dim = 0.707, as V2
    assert key(file, "rope.scaling.type") == "yarn"
    assert key(file, "rope.scaling.factor") == 4
    assert key(file, "rope.scaling.original_context_length") == 32
    assert key(file, "rope.scaling.yarn_beta_fast") == 32
    assert key(file, "rope.scaling.yarn_log_multiplier") == pytest.approx(0.0707)
    assert key(file, "rope.scaling.attn_factor") is None


def test_the_published_gate_values_of_v2_are_scaled_only_if_not_normalised(
    export: Export, tmp_path: Path
) -> None:
    assert key(export("v2")[0], "expert_weights_scale") == 16
    (tmp_path / "model").rename(tmp_path / "other")
    (tmp_path / "model.f32.gguf").unlink()
    assert key(export("v2", norm_topk_prob=True)[0], "expert_weights_scale") == 1


def test_what_v1_multiplies_rotated_queries_by_is_told_as_a_factor(export: Export) -> None:
    scaling = {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16, "mscale": 0.5}
    file, _, _ = export("v1", rope_scaling=scaling)
    wanted = (1 + 0.05 * log(8)) / (1 + 0.1 * log(8))
    assert key(file, "rope.scaling.attn_factor") == pytest.approx(wanted)


def test_the_choice_in_groups_that_differs_is_told(export: Export) -> None:
    assert "some tokens get other experts" in export("v2")[2].notes[0]


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("v1", {"norm_topk_prob": True}, "softmax scores that are not normalised"),
        ("v1", {"topk_method": "hash", "num_experts_per_tok": 1}, "topk_method='hash'"),
        ("v1", {"n_shared_experts": None}, "n_shared_experts=0"),
        ("v2", {"moe_layer_freq": 2}, "config.moe_layer_freq=2"),
        ("v3", {"n_group": 8, "topk_group": 4}, "n_group=8 leaves them one"),
        ("v3", {"num_hidden_layers": 27}, "takes one of num_hidden_layers=27 for V2-Lite"),
    ],
)
def test_a_model_that_llama_cpp_cannot_compute_is_refused(
    export: Export, tmp_path: Path, family: str, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=r"llama\.cpp cannot run this model: ") as error:
        export(family, **changes)
    assert reason in str(error.value)
    assert not list(tmp_path.glob("*.gguf*"))


def test_a_file_that_exists_is_not_replaced(export: Export) -> None:
    export("v1")
    with pytest.raises(CheckpointError, match="exists already; give another name"):
        export("v1")


@pytest.mark.parametrize("form", ["f16", "q8_0"])
def test_a_weight_without_a_form_is_an_error_and_nothing_is_left(
    export: Export, tmp_path: Path, tiny_config: Callable[..., ModelConfig], form: Form
) -> None:
    config = tiny_config("v1", **_WIDE)
    state = random_model(config).state_dict()
    state["model.layers.1.self_attn.o_proj.weight"][3, 4] = 1e6 if form == "f16" else float("nan")
    save(tmp_path / "model", config, state, "float32")
    with pytest.raises(CheckpointError, match=r"blk\.1\.attn_output\.weight holds values"):
        export("v1", form)
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_rotating_neighbours_is_rotating_halves_of_reordered_rows(
    tiny_config: Callable[..., ModelConfig], generator: torch.Generator
) -> None:
    rope = Rope(tiny_config("v1"))
    rotation = rope(torch.arange(5)[None])
    weight = torch.randn(16, 6, generator=generator)
    x = torch.randn(1, 5, 6, generator=generator)
    halves = rotation((x @ weight.T).unflatten(-1, (2, 8)))
    rope.interleaved = True
    neighbours = rope(torch.arange(5)[None])(
        (x @ as_neighbours(weight, 8, 8).T).unflatten(-1, (2, 8))
    )
    assert torch.allclose(halves, neighbours)
