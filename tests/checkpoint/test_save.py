"""Writing: the published layout, streamed, whole."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint.damage import edit_tensors
from torch import Tensor

from moesaic.checkpoint.check import check
from moesaic.checkpoint.digest import RECORD, digest
from moesaic.checkpoint.files import read_safetensors
from moesaic.checkpoint.folder import INDEX
from moesaic.checkpoint.fresh import fresh_tensor
from moesaic.checkpoint.load import Reader, load_into
from moesaic.checkpoint.names import Resident, state_shapes
from moesaic.checkpoint.save import save, write
from moesaic.config.model import ModelConfig
from moesaic.config.published import read_config
from moesaic.errors import CheckpointError, ConfigError

Fresh = Callable[..., Path]
Config = Callable[..., ModelConfig]
DOWN = "model.layers.1.mlp.experts.down_proj"


def _load(folder: Path, resident: Resident | None = None) -> tuple[ModelConfig, dict[str, Tensor]]:
    reader = Reader(folder)
    state = {n: torch.empty(shape) for n, shape in state_shapes(reader.config, resident).items()}
    load_into(reader, state, resident)
    return reader.config, state


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_loading_and_saving_gives_the_same_checkpoint(
    fresh: Fresh, tmp_path: Path, family: str
) -> None:
    base = fresh(family)
    config, state = _load(base)
    root = save(tmp_path / "again", config, state, "float32", source=base)
    assert root == digest(base) == digest(tmp_path / "again", verify=True)
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        assert (base / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_tied_head_is_not_written(fresh: Fresh) -> None:
    folder = fresh("v2", tie_word_embeddings=True)
    assert "lm_head.weight" not in read_safetensors(folder / "model.safetensors")
    assert read_config(folder).tie_word_embeddings


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_weights_are_stored_in_the_type_asked_for_and_router_biases_in_float32(
    fresh: Fresh, dtype: str
) -> None:
    folder = fresh("v3", dtype)
    for name, tensor in read_safetensors(folder / "model.safetensors").items():
        wanted = "float32" if name.endswith("e_score_correction_bias") else dtype
        assert str(tensor.dtype) == f"torch.{wanted}"
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == dtype


def test_repeats_are_written_as_they_are_published(fresh: Fresh) -> None:
    found = read_safetensors(fresh("v3") / "model.safetensors")
    embedding, head = found["model.embed_tokens.weight"], found["lm_head.weight"]
    assert torch.equal(found["model.layers.3.embed_tokens.weight"], embedding)
    assert torch.equal(found["model.layers.3.shared_head.head.weight"], head)


def test_parked_experts_come_from_the_source(fresh: Fresh, tmp_path: Path) -> None:
    base, resident = fresh("v2"), {1: (2, 5), 2: (0,)}
    config, state = _load(base, resident)
    state[DOWN][1] += 1
    save(tmp_path / "new", config, state, "float32", source=base, resident=resident)
    before = read_safetensors(base / "model.safetensors")
    after = read_safetensors(tmp_path / "new" / "model.safetensors")
    changed = "model.layers.1.mlp.experts.5.down_proj.weight"
    assert torch.equal(after.pop(changed), before.pop(changed) + 1)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_parked_experts_without_a_source_are_named(fresh: Fresh, tmp_path: Path) -> None:
    config, state = _load(fresh("v2"), {1: (2, 5)})
    message = "layers.1.mlp.experts.0.gate_proj.weight is not in the model; give the checkpoint it"
    with pytest.raises(CheckpointError, match=message):
        save(tmp_path / "new", config, state, "float32", resident={1: (2, 5)})
    assert not (tmp_path / "new").exists()


def test_a_source_of_another_shape_is_refused(fresh: Fresh, tmp_path: Path) -> None:
    other = fresh("v2", name="other", moe_intermediate_size=4)
    config, state = _load(fresh("v2"), {1: (2, 5)})
    with pytest.raises(CheckpointError, match=r"has another shape than \[8, 16\]; give the check"):
        save(tmp_path / "new", config, state, "float32", source=other, resident={1: (2, 5)})


def test_a_source_that_is_no_folder_is_refused(fresh: Fresh, tmp_path: Path) -> None:
    config, state = _load(fresh("v2"))
    with pytest.raises(CheckpointError, match="nowhere is not a folder; give the folder of a"):
        save(tmp_path / "new", config, state, "float32", source=tmp_path / "nowhere")


def test_tokenizer_and_generation_settings_are_taken_over_byte_for_byte(
    fresh: Fresh, tmp_path: Path
) -> None:
    base = fresh("v2")
    carried = {
        "tokenizer.json": b'{"a": 1 }',
        "tokenizer_config.json": b"{}\n\n",
        "generation_config.json": b'{"temperature": 0.3}',
        "chat_template.jinja": b"{{ x }}",
    }
    for name, content in {**carried, "modeling_deepseek.py": b"import os"}.items():
        (base / name).write_bytes(content)
    config, state = _load(base)
    save(tmp_path / "new", config, state, "float32", source=base)
    for name, content in carried.items():
        assert (tmp_path / "new" / name).read_bytes() == content
    assert not (tmp_path / "new" / "modeling_deepseek.py").exists()


def test_a_tokenizer_that_is_a_link_out_of_the_source_is_refused(
    fresh: Fresh, tmp_path: Path
) -> None:
    base = fresh("v2")
    (tmp_path / "private").write_text("secret")
    (base / "tokenizer.json").symlink_to(tmp_path / "private")
    config, state = _load(base)
    with pytest.raises(CheckpointError, match=r"tokenizer.json is a link to .*put the file itself"):
        save(tmp_path / "new", config, state, "float32", source=base)
    assert not (tmp_path / "new").exists()


def test_generation_settings_name_the_special_tokens(fresh: Fresh) -> None:
    found = json.loads((fresh("v2") / "generation_config.json").read_text())
    assert found == {"bos_token_id": 0, "eos_token_id": 1}


@pytest.mark.parametrize("file_bytes", [1, 3000, 6000])
def test_files_are_bounded_and_the_index_names_every_tensor(
    tmp_path: Path, tiny_config: Config, generator: torch.Generator, file_bytes: int
) -> None:
    folder = tmp_path / "split"
    config = tiny_config("v2", num_hidden_layers=2, n_routed_experts=4, n_group=2, topk_group=2)
    write(
        folder,
        config,
        lambda spec: fresh_tensor(spec, 0.1, torch.float32, generator),
        "float8_e4m3fn",
        file_bytes=file_bytes,
    )
    report = check(folder)
    assert report.is_sound
    assert not report.warnings
    index = json.loads((folder / INDEX).read_text())
    assert index["weight_map"] == {n: stored.path.name for n, stored in report.stored.items()}
    for path in report.files:
        held = [stored for stored in report.stored.values() if stored.path == path]
        weights = [stored for stored in held if not stored.name.endswith("_scale_inv")]
        assert len(weights) == 1 or sum(stored.n_bytes for stored in held) <= file_bytes


def test_a_value_too_large_for_float16_is_refused(fresh: Fresh, tmp_path: Path) -> None:
    config, state = _load(fresh("v2"))
    state["model.norm.weight"][3] = 70_000
    with pytest.raises(
        CheckpointError, match=r"weight holds 7e.04, more than float16 can; save it"
    ):
        save(tmp_path / "new", config, state, "float16")


def test_a_type_that_cannot_be_stored_is_refused(fresh: Fresh, tmp_path: Path) -> None:
    config, state = _load(fresh("v2"))
    with pytest.raises(ConfigError, match=r"dtype='bfloat' is not one of .*mean 'bfloat16'"):
        save(tmp_path / "new", config, state, "bfloat")


def test_a_state_of_another_model_is_refused(fresh: Fresh, tmp_path: Path) -> None:
    config, state = _load(fresh("v2"))
    with pytest.raises(CheckpointError, match=r"model.norm.bias is no tensor of this model"):
        save(tmp_path / "new", config, {**state, "model.norm.bias": torch.ones(16)}, "float32")
    with pytest.raises(CheckpointError, match=r"model.norm.weight has shape \[3\], the configur"):
        save(tmp_path / "new", config, {**state, "model.norm.weight": torch.ones(3)}, "float32")


def test_what_the_disk_cannot_hold_is_not_begun(tmp_path: Path, tiny_config: Config) -> None:
    config = tiny_config("v2", vocab_size=10**14)
    with pytest.raises(CheckpointError, match=r"new needs 6400\.0 TB, .* free; free some space"):
        write(tmp_path / "new", config, lambda spec: torch.empty(0), "bfloat16")
    assert list(tmp_path.iterdir()) == []


def test_unchanged_fp8_weights_keep_their_bytes(fresh: Fresh, tmp_path: Path) -> None:
    base = fresh("v2", "float8_e4m3fn", name="fp8", hidden_size=160)
    edit_tensors(base, _odd_scales)
    (base / RECORD).unlink()
    config, state = _load(base)
    kept = {"model.norm.weight": state["model.norm.weight"]}
    root = save(tmp_path / "new", config, kept, "float8_e4m3fn", source=base)
    assert root == digest(base)


def test_other_blocks_than_the_source_has_are_computed_anew(fresh: Fresh, tmp_path: Path) -> None:
    base = fresh("v2", "float8_e4m3fn")
    config, _ = _load(base)
    blocks = {"quant_method": "fp8", "weight_block_size": (4, 8)}
    smaller = config.changed(quantization_config=blocks)
    save(tmp_path / "new", smaller, {}, "float8_e4m3fn", source=base)
    old, new = Reader(base), Reader(tmp_path / "new")
    assert new.config.quantization_config != old.config.quantization_config
    for name in old.names:
        assert torch.allclose(old.read(name).float(), new.read(name).float(), rtol=2**-4, atol=1e-3)


def _odd_scales(found: dict[str, Tensor]) -> None:
    """Scales as another tool might have chosen them."""
    for name, tensor in found.items():
        if name.endswith("_scale_inv"):
            tensor *= 1.37
