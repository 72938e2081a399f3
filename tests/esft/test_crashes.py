"""A merge, an undoing or the writing of a shard that is killed, or finds the disk full, leaves
nothing under a final name; the same call then succeeds and clears up."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from crashes import crash_before, largest_file, writes_of

from moesaic.checkpoint.atomic import PARTIAL
from moesaic.checkpoint.digest import digest
from moesaic.config.merge import MergeConfig
from moesaic.errors import CheckpointError
from moesaic.esft.manifest import Work
from moesaic.esft.merge import merge_shards
from moesaic.esft.park import load_slice
from moesaic.esft.select import Selection
from moesaic.esft.shard import ShardManifest, write_shard
from moesaic.esft.undo import undo_merge

MakeBase = Callable[..., Path]
MakeShard = Callable[..., Path]
Job = Callable[[Path], object]

_KEEP = MergeConfig(keep_undo=True)
_SELECTION = Selection(experts={1: (1, 2, 5), 2: (0, 3, 7)})


def _write(base: Path, folder: Path) -> object:
    model = load_slice(base, _SELECTION)
    work = Work(base=digest(base), run={}, data=(), tokens=1, steps=1)
    return write_shard(folder, model, _SELECTION, work)


@pytest.fixture(params=["merge", "undo", "shard"])
def job(
    request: pytest.FixtureRequest, make_base: MakeBase, make_shard: MakeShard, tmp_path: Path
) -> Job:
    """``job(folder)`` writes a merged checkpoint, its base, or a shard."""
    base = make_base("v2")
    if request.param == "shard":
        return partial(_write, base)
    shard = make_shard("trained", base)
    if request.param == "merge":
        return partial(merge_shards, base, [shard], config=_KEEP)
    merge_shards(base, [shard], tmp_path / "kept", config=_KEEP)
    return partial(undo_merge, tmp_path / "kept")


def _found(folder: Path) -> str:
    """What is there, as one digest."""
    is_shard = (folder / "manifest.json").exists()
    return ShardManifest.read(folder).digest if is_shard else digest(folder, verify=True)


def _survives(job: Job, folder: Path, numbers: list[int], expected: str) -> None:
    for number in numbers:
        assert crash_before(partial(job, folder), folder, number) == -9
        assert not folder.exists()
        job(folder)
        assert _found(folder) == expected
        assert not list(folder.parent.rglob(f"*{PARTIAL}*"))
        folder.rename(folder.parent / f"done-{number}")


def test_a_job_killed_half_way_leaves_nothing_and_is_done_again(job: Job, tmp_path: Path) -> None:
    job(tmp_path / "whole")
    _survives(job, tmp_path / "killed", [4], _found(tmp_path / "whole"))


@pytest.mark.slow
def test_a_job_killed_before_any_of_its_writes_is_done_again(job: Job, tmp_path: Path) -> None:
    total = writes_of(partial(job, tmp_path / "counted"), tmp_path / "counted")
    assert total > 5
    expected = _found(tmp_path / "counted")
    _survives(job, tmp_path / "killed", list(range(1, total + 1)), expected)


@pytest.mark.parametrize("n_bytes", [100, 3_000])
def test_a_full_disk_leaves_nothing_and_says_so(n_bytes: int, job: Job, tmp_path: Path) -> None:
    folder = tmp_path / "full"
    message = f"{folder}.* could not be written .*nothing unfinished was left under that name"
    with largest_file(n_bytes), pytest.raises(CheckpointError, match=message):
        job(folder)
    assert not list(tmp_path.glob("full*"))
    job(folder)
    assert _found(folder)
