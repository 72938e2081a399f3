"""Every way in which a checkpoint can be wrong is told, by tensor, with the fix."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint.edit import edit_json, edit_tensors

from moesaic.checkpoint.check import Report, check
from moesaic.checkpoint.folder import INDEX, Kind
from moesaic.checkpoint.fresh import fresh_tensor
from moesaic.checkpoint.load import Reader
from moesaic.checkpoint.save import write
from moesaic.config.model import ModelConfig
from moesaic.config.published import read_config
from moesaic.errors import CheckpointError

Fresh = Callable[..., Path]
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture
def split(tmp_path: Path, tiny_config: Callable[..., ModelConfig]) -> Path:
    """A checkpoint in many files with an index."""
    folder, draw = tmp_path / "split", torch.Generator().manual_seed(0)
    config = tiny_config("v2")
    make = lambda spec: fresh_tensor(spec, 0.1, torch.float32, draw)  # noqa: E731
    write(folder, config, make, "float32", file_bytes=10_000)
    return folder


def _only(report: Report, kind: Kind, name: str) -> str:
    """The text of the report's only problem."""
    assert [(problem.kind, problem.name) for problem in report.problems] == [(kind, name)]
    assert not report.is_sound
    with pytest.raises(CheckpointError, match="cannot be read") as error:
        Reader(report.folder)
    assert report.problems[0].text in str(error.value)
    assert report.problems[0].text in report.text()
    return report.problems[0].text


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn"])
def test_what_is_written_here_is_sound(fresh: Fresh, family: str, dtype: str) -> None:
    report = check(fresh(family, dtype))
    assert report.is_sound
    assert not report.warnings
    assert report.text().endswith("\nsound")


def test_many_files_and_an_index_are_sound(split: Path) -> None:
    report = check(split)
    assert report.is_sound
    assert not report.warnings
    assert len(report.files) > 3


def test_a_missing_tensor_is_named(fresh: Fresh) -> None:
    folder = fresh("v2")
    edit_tensors(folder, lambda found: found.pop(Q_PROJ))
    text = _only(check(folder), "missing", Q_PROJ)
    assert text == f"{Q_PROJ} is missing; fetch the file that holds it"


def test_a_tensor_no_model_has_is_named(fresh: Fresh) -> None:
    folder, wrong = fresh("v2"), NORM.replace("weight", "weigth")
    edit_tensors(folder, lambda found: found.update({wrong: torch.ones(16)}))
    text = _only(check(folder), "unexpected", wrong)
    assert f"{wrong} is no tensor of this model; did you mean '{NORM}'?; remove it" in text


def test_a_wrong_shape_is_told_with_the_right_one(fresh: Fresh) -> None:
    folder = fresh("v2")
    edit_tensors(folder, lambda found: found.update({NORM: torch.ones(15)}))
    text = _only(check(folder), "wrong shape", NORM)
    assert f"{NORM} has shape [15], config.json makes it [16]; fetch the config.json" in text


@pytest.mark.parametrize(("dtype", "name"), [(torch.int32, "I32"), (torch.float64, "F64")])
def test_a_wrong_type_is_told_with_the_right_ones(
    fresh: Fresh, dtype: torch.dtype, name: str
) -> None:
    folder = fresh("v2")
    edit_tensors(folder, lambda found: found.update({NORM: torch.ones(16, dtype=dtype)}))
    text = _only(check(folder), "wrong type", NORM)
    assert f"{NORM} is stored as {name}, weights are BF16, F16, F32 or F8_E4M3" in text


def test_a_file_cut_short_is_told_once_and_not_for_each_tensor(split: Path) -> None:
    victim = check(split).files[1]
    victim.write_bytes(victim.read_bytes()[:-1])
    text = _only(check(split), "damaged", victim.name)
    assert "cut short: fetch it again (it should hold model.layers." in text


def test_a_file_that_is_not_there_is_told_with_what_it_should_hold(split: Path) -> None:
    victim = check(split).files[1]
    victim.unlink()
    text = _only(check(split), "damaged", victim.name)
    assert "does not exist or is not a file; fetch it again (it should hold model.layers." in text


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/x.safetensors", "a/b", "..", ""])
def test_an_index_that_leads_out_of_the_folder_is_refused(split: Path, name: str) -> None:
    shutil.copy(check(split).files[0], split.parent / "secret.safetensors")
    edit_json(split / INDEX, lambda index: index["weight_map"].update({NORM: name}))
    texts = [problem.text for problem in check(split).problems]
    assert any(f"the file name {name!r} leads out of the folder" in text for text in texts)
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        Reader(split)


def test_a_link_out_of_the_folder_is_refused(split: Path) -> None:
    victim = check(split).files[1]
    victim.rename(split.parent / victim.name)
    victim.symlink_to(split.parent / victim.name)
    text = _only(check(split), "damaged", victim.name)
    assert "is a link to" in text
    assert "out of the folder; put the file itself there" in text


def test_links_in_a_circle_are_refused(split: Path) -> None:
    victim = check(split).files[1]
    victim.unlink()
    victim.symlink_to(victim.name)
    assert "fetch it again" in _only(check(split), "damaged", victim.name)


def test_the_links_of_a_download_cache_are_followed(split: Path) -> None:
    snapshot = split.parent / "models--x" / "snapshots" / "1a2b"
    blobs = split.parent / "models--x" / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(split.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(blobs / str(number))
    assert check(snapshot).is_sound


def test_an_index_that_names_the_wrong_file_is_refused(split: Path) -> None:
    last = check(split).files[-1].name

    def lie(index: dict[str, Any]) -> None:
        index["weight_map"][Q_PROJ] = last

    edit_json(split / INDEX, lie)
    problems = check(split).problems
    assert {problem.name for problem in problems} == {Q_PROJ}
    assert f"{INDEX} places {Q_PROJ} in {last}, which does not hold it" in problems[1].text
    assert f"holds {Q_PROJ}, which {INDEX} does not place there" in problems[0].text


def test_a_tensor_stored_twice_is_refused(split: Path) -> None:
    first, second = check(split).files[:2]
    name = next(n for n, stored in check(split).stored.items() if stored.path == first)
    shutil.copy(second, split / "again.safetensors")
    other = next(n for n, stored in check(split).stored.items() if stored.path == second)
    edit_json(split / INDEX, lambda index: index["weight_map"].update({other: "again.safetensors"}))
    texts = [p.text for p in check(split).problems if p.name == other]
    assert f"{other} is stored twice, in again.safetensors and in {second.name}" in " ".join(texts)
    assert name not in check(split).names("unexpected")


def test_a_wrong_total_size_changes_nothing_and_is_told(split: Path) -> None:
    edit_json(split / INDEX, lambda index: index["metadata"].update(total_size=3))
    report = check(split)
    assert report.is_sound
    assert "total_size=3, its tensors have" in report.warnings[0]


def test_an_index_without_a_weight_map_is_refused(split: Path) -> None:
    (split / INDEX).write_text('{"weight_map": {"a": 3}}')
    with pytest.raises(CheckpointError, match="has no weight_map of tensor → file; fetch it again"):
        check(split)


def test_files_without_their_index_are_refused(split: Path) -> None:
    (split / INDEX).unlink()
    with pytest.raises(CheckpointError, match=f"but no {INDEX}; fetch the index too"):
        check(split)


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="can run code when it is read; convert them to safe"):
        check(tmp_path)


def test_pickled_weights_beside_good_ones_are_told_and_not_read(fresh: Fresh) -> None:
    folder = fresh("v2")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (folder / "other.safetensors").write_bytes(b"")
    (folder / "model.safetensors.partial-1a").touch()
    report = check(folder)
    assert report.is_sound
    assert [warning.split(" ")[0] for warning in report.warnings] == [
        "model.safetensors.partial-1a",
        "other.safetensors",
        "pytorch_model.bin",
    ]


def test_a_folder_without_weights_or_configuration_is_refused(fresh: Fresh, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere is not a folder; give the folder of a"):
        check(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no model.safetensors and no"):
        check(tmp_path / "empty")
    folder = fresh("v2")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config.json does not exist"):
        check(folder)


def test_rotary_frequencies_of_old_tools_are_ignored(fresh: Fresh) -> None:
    folder, name = fresh("v1"), "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(folder, lambda found: found.update({name: torch.ones(4)}))
    report = check(folder)
    assert (report.is_sound, report.ignored) == (True, (name,))
    assert f"ignored: 1 tensors such as {name}" in report.text()


def test_a_head_that_repeats_the_embedding_may_be_there_or_not(fresh: Fresh) -> None:
    folder = fresh("v2", tie_word_embeddings=True)
    assert check(folder).is_sound
    embedding = "model.embed_tokens.weight"
    edit_tensors(folder, lambda found: found.update({"lm_head.weight": found[embedding]}))
    assert check(folder).is_sound
    edit_tensors(folder, lambda found: found.update({"lm_head.weight": found[embedding] + 1}))
    text = _only(check(folder), "damaged", "lm_head.weight")
    assert f"lm_head.weight differs from {embedding}, which it must repeat" in text
    assert "set tie_word_embeddings to false" in text


def test_repeats_of_a_prediction_module_may_be_absent_but_not_different(fresh: Fresh) -> None:
    folder, name = fresh("v3"), "model.layers.3.embed_tokens.weight"
    edit_tensors(folder, lambda found: found[name].add_(1))
    assert "fetch both again" in _only(check(folder), "damaged", name)
    edit_tensors(folder, lambda found: found.pop(name))
    assert check(folder).is_sound
    assert torch.equal(Reader(folder).read(name), Reader(folder).read("model.embed_tokens.weight"))


def test_half_a_prediction_module_is_refused_and_none_is_told(fresh: Fresh) -> None:
    folder, name = fresh("v3"), "model.layers.3.eh_proj.weight"
    edit_tensors(folder, lambda found: found.pop(name))
    assert "set num_nextn_predict_layers to 0" in _only(check(folder), "missing", name)

    def drop(found: dict[str, Any]) -> None:
        for name in [name for name in found if name.startswith("model.layers.3.")]:
            del found[name]

    edit_tensors(folder, drop)
    report = check(folder)
    assert (report.is_sound, report.config.num_nextn_predict_layers) == (True, 0)
    assert "the model is read without them" in report.warnings[0]


def test_a_prediction_module_the_configuration_does_not_know_is_refused(fresh: Fresh) -> None:
    folder = fresh("v3")
    edit_json(folder / "config.json", lambda data: data.update(num_nextn_predict_layers=0))
    report = check(folder)
    assert set(report.names("unexpected")) == {
        name for name in report.stored if name.startswith("model.layers.3.")
    }
    assert "set num_nextn_predict_layers in config.json" in report.text()
    assert "more tensors unexpected" in report.text()


def test_fp8_weights_need_scales_of_their_own(fresh: Fresh) -> None:
    folder, scale = fresh("v2", "float8_e4m3fn"), f"{Q_PROJ}_scale_inv"
    edit_tensors(folder, lambda found: found.update({scale: found[scale].half()}))
    assert "is stored as F16, scales are F32" in _only(check(folder), "wrong type", scale)
    edit_tensors(folder, lambda found: found.update({scale: torch.ones(2, 1)}))
    assert "needs [1, 1]" in _only(check(folder), "wrong shape", scale)
    edit_tensors(folder, lambda found: found.pop(scale))
    assert f"the scales of the FP8 blocks of {Q_PROJ}" in _only(check(folder), "missing", scale)


def test_fp8_weights_need_blocks_in_the_configuration(fresh: Fresh) -> None:
    folder = fresh("v2", "float8_e4m3fn")
    edit_json(folder / "config.json", lambda data: data.pop("quantization_config"))
    assert "config.json has no quantization_config" in check(folder).text()


def test_scales_of_a_weight_that_is_not_fp8_are_refused(fresh: Fresh) -> None:
    folder, scale = fresh("v2"), f"{Q_PROJ}_scale_inv"
    edit_tensors(folder, lambda found: found.update({scale: torch.ones(1, 1)}))
    text = _only(check(folder), "unexpected", scale)
    assert f"{scale} scales {Q_PROJ}, which is not stored as F8_E4M3; remove it" in text


def test_the_configuration_is_the_one_beside_the_weights(fresh: Fresh) -> None:
    assert check(fresh("v1")).config == read_config(fresh("v1", name="again"))
