"""Undo a merge, of shards or of an adapter: the base comes back from what was kept of it."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from moesaic.checkpoint.atomic import new_folder, refuse_filled
from moesaic.checkpoint.files import LazyTensor, read_tensor, write_safetensors
from moesaic.checkpoint.folder import files_beside, inside
from moesaic.checkpoint.header import StoredTensor, read_header, read_json
from moesaic.checkpoint.load import Reader
from moesaic.checkpoint.markdown import README
from moesaic.errors import CheckpointError
from moesaic.esft.rewrite import OnTensor, rewrite

MERGED, ABSORBED = "merge.json", "adapter.json"
"""What a merge of shards, and of an adapter, writes about itself beside the merged weights."""
UNDO, KEPT = "undo", "base.safetensors"
"""Where the base's bytes lie: in a folder of its own, where no reader of checkpoints looks."""


def keep(changed: Iterable[StoredTensor], folder: Path, base: Path) -> None:
    """Write what a merge changed of its base into the folder of the merged checkpoint.

    Args:
        changed: tensors of the base that the merged checkpoint has with other bytes.
        folder: the merged checkpoint.
        base: its base, whose card is kept too.
    """
    pending = [
        LazyTensor(one.name, one.dtype, one.shape, lambda one=one: read_tensor(one))
        for one in changed
    ]
    (folder / UNDO).mkdir()
    write_safetensors(folder / UNDO / KEPT, pending, {"format": "pt"})
    _copy_card(base, folder / UNDO)


def undo_merge(merged: Path | str, out: Path | str, on_tensor: OnTensor | None = None) -> str:
    """Write the base of a merge that kept what it needs, and return its digest.

    Every tensor has the bytes it had. Files have the base's names; their headers are written anew.

    Args:
        merged: the merged checkpoint.
        out: where to; it must be empty or not exist, and appears when it is complete and its digest
            is the base's.
        on_tensor: called with the name of each tensor that was written.

    Raises:
        CheckpointError: if the merge kept nothing, if the merged checkpoint or what was kept
            changed since, if ``out`` is not empty, or the disk is full.
    """
    merged, out = Path(merged), Path(out)
    refuse_filled(out)
    reader, base = Reader(merged), _base_of(merged)
    kept = _kept(reader, base)

    def make(stored: StoredTensor) -> Tensor:
        return read_tensor(kept.get(stored.name, stored))

    with new_folder(out) as partial:
        found = rewrite(reader, partial, make, on_tensor)
        if found != base:
            raise CheckpointError(
                f"{merged}: without the merge it is {found[:12]}, and its base was {base[:12]}; it "
                f"changed since it was merged: fetch the base, or merge again"
            )
        _copy_card(reader.folder / UNDO, partial)
    return found


def _copy_card(source: Path, folder: Path) -> None:
    for path in files_beside(source, (README,)):
        shutil.copyfile(path, folder / README)


def _base_of(merged: Path) -> str:
    record = next((name for name in (MERGED, ABSORBED) if (merged / name).exists()), None)
    if record is None:
        raise CheckpointError(
            f"{merged} has no {MERGED} or {ABSORBED}; give the folder of a merged checkpoint"
        )
    base = read_json(inside(merged, record)).get("base")
    if not isinstance(base, str):
        raise CheckpointError(f"{merged / record} does not name a base; fetch it again")
    return base


def _kept(reader: Reader, base: str) -> Mapping[str, StoredTensor]:
    """What the merge kept, held against what it wrote."""
    folder = reader.folder / UNDO
    if not folder.is_dir():
        raise CheckpointError(
            f"{reader.folder} keeps nothing of its base, {base[:12]}; fetch that, or merge again "
            "with keep_undo=true"
        )
    kept = read_header(inside(folder, KEPT)).tensors
    for name, tensor in kept.items():
        merged = reader.report.stored.get(name)
        if merged is None or (merged.dtype, merged.shape) != (tensor.dtype, tensor.shape):
            raise CheckpointError(
                f"{tensor.path}: tensor {name} is not like one of {reader.folder}; fetch the "
                "merged checkpoint again"
            )
    return kept
