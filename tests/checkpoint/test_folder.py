"""Files, links and an index that are not what they should be."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint.damage import edit_json, only_problem

from moesaic.checkpoint.check import check
from moesaic.checkpoint.folder import INDEX
from moesaic.checkpoint.load import Reader
from moesaic.errors import CheckpointError

Fresh = Callable[..., Path]
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"


def test_many_files_and_an_index_are_sound(split: Path) -> None:
    report = check(split)
    assert report.is_sound
    assert not report.warnings
    assert len(report.files) > 3


def test_a_file_cut_short_is_told_once_and_not_for_each_tensor(split: Path) -> None:
    victim = check(split).files[1]
    victim.write_bytes(victim.read_bytes()[:-1])
    text = only_problem(check(split), "damaged", victim.name)
    assert "cut short: fetch it again (it should hold model.layers." in text


def test_a_file_that_is_not_there_is_told_with_what_it_should_hold(split: Path) -> None:
    victim = check(split).files[1]
    victim.unlink()
    text = only_problem(check(split), "damaged", victim.name)
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
    text = only_problem(check(split), "damaged", victim.name)
    assert "is a link to" in text
    assert "out of the folder; put the file itself there" in text


def test_links_in_a_circle_are_refused(split: Path) -> None:
    victim = check(split).files[1]
    victim.unlink()
    victim.symlink_to(victim.name)
    assert "fetch it again" in only_problem(check(split), "damaged", victim.name)


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
    with pytest.raises(CheckpointError, match=r"holds no model.safetensors and no"):
        check(tmp_path / "empty")
    folder = fresh("v2")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config.json does not exist"):
        check(folder)
