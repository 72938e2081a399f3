"""One digest for all tensors: names, types, shapes and bytes, however they are split."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint.damage import edit_json, edit_tensors

from moesaic.checkpoint.digest import RECORD, digest
from moesaic.checkpoint.files import read_safetensors
from moesaic.checkpoint.fresh import tensor_seed, write_fresh
from moesaic.checkpoint.load import Reader
from moesaic.checkpoint.save import write
from moesaic.errors import CheckpointError

Fresh = Callable[..., Path]
NORM = "model.norm.weight"


def test_the_digest_is_the_sha256_of_name_type_shape_and_sha256_of_each_tensor(
    fresh: Fresh,
) -> None:
    folder = fresh("v3", "float8_e4m3fn")
    names = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3"}
    rows = [
        [name, names[t.dtype], list(t.shape), hashlib.sha256(bytes(t.view(torch.uint8).flatten()))]
        for name, t in sorted(read_safetensors(folder / "model.safetensors").items())
    ]
    text = json.dumps([[*row[:3], row[3].hexdigest()] for row in rows], separators=(",", ":"))
    assert digest(folder) == hashlib.sha256(text.encode()).hexdigest()


def test_how_tensors_are_split_over_files_changes_nothing(fresh: Fresh, tmp_path: Path) -> None:
    base = fresh("v2")
    reader = Reader(base)
    root = write(
        tmp_path / "split",
        reader.config,
        lambda spec: reader.read(spec.name),
        "float32",
        file_bytes=9000,
    )
    assert root == digest(base)


CHANGES = pytest.mark.parametrize(
    "change",
    [
        lambda found: found[NORM].add_(2**-20),
        lambda found: found.update({NORM: found[NORM].bfloat16()}),
        lambda found: found.update({NORM: found[NORM].view(1, -1)}),
        lambda found: found.update({"model.nor.weight": found.pop(NORM)}),
        lambda found: found.pop(NORM),
    ],
    ids=["bytes", "type", "shape", "name", "absence"],
)


@CHANGES
def test_any_change_to_a_tensor_changes_the_digest(fresh: Fresh, change: Any) -> None:
    folder = fresh("v2")
    before = digest(folder)
    (folder / RECORD).unlink()
    edit_tensors(folder, change)
    assert digest(folder) != before


def test_it_is_computed_once_and_kept(fresh: Fresh) -> None:
    folder = fresh("v2")
    before = digest(folder)
    (folder / RECORD).unlink()
    assert digest(folder) == before
    stamp = (folder / RECORD).stat().st_mtime_ns
    assert digest(folder) == before
    assert (folder / RECORD).stat().st_mtime_ns == stamp


def test_a_copy_that_lost_its_times_is_read_again_and_is_the_same(
    fresh: Fresh, tmp_path: Path
) -> None:
    folder = fresh("v2")
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    assert digest(tmp_path / "copy") == digest(folder)
    record = json.loads((tmp_path / "copy" / RECORD).read_text())
    stat = (tmp_path / "copy" / "model.safetensors").stat()
    assert record["files"] == {"model.safetensors": [stat.st_size, stat.st_mtime_ns]}


@CHANGES
def test_what_changed_since_the_record_is_named(fresh: Fresh, change: Any) -> None:
    folder = fresh("v2")
    edit_tensors(folder, change)
    what = r"(tensor model.norm?.weight|the type or shape of a tensor)"
    with pytest.raises(CheckpointError, match=f"{what} changed since {RECORD} was written"):
        digest(folder)


def test_damage_that_kept_size_and_time_is_found_by_reading_every_byte(fresh: Fresh) -> None:
    folder = fresh("v2")
    path, before = folder / "model.safetensors", digest(folder)
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert digest(folder) == before
    with pytest.raises(CheckpointError, match=r"changed since .*fetch it again, or remove"):
        digest(folder, verify=True)


def test_a_record_of_something_else_is_refused(fresh: Fresh) -> None:
    folder = fresh("v2")
    edit_json(folder / RECORD, lambda record: record.update(tensors=[1]))
    with pytest.raises(CheckpointError, match="is not a record of digests; remove it"):
        digest(folder)


def test_a_damaged_checkpoint_has_no_digest(fresh: Fresh) -> None:
    folder = fresh("v2")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"has no digest: .* cut short: fetch it again"):
        digest(folder)


def test_the_same_seed_gives_the_same_checkpoint_and_another_another(
    fresh: Fresh, tmp_path: Path
) -> None:
    base = fresh("v2")
    config = Reader(base).config
    other = write_fresh(tmp_path / "other", config, "float32", 1, lambda spec: None)
    assert digest(fresh("v2", name="same")) == digest(base) != other
    assert tensor_seed(0, "a") == tensor_seed(0, "a") != tensor_seed(1, "a")
