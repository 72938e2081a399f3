"""The digest of a checkpoint: one number for all of its tensors, computed once.

Each tensor has the sha256 of its bytes; the root is the sha256 over every tensor's name, type,
shape and sha256, sorted by name. It says the same of the same tensors however they are split over
files, and it sees a shape or a type that changed.

``digest.json`` keeps the figures with the size and modification time of each file. They are trusted
while every file still has both; a copy that did not keep the times is read once more. That finds
files that were cut short, mixed up or written to. Against someone who wants to deceive, and a disk
that forgets, read all bytes again (``verify=True``).
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesaic.checkpoint.atomic import new_file
from moesaic.checkpoint.files import read_chunks
from moesaic.checkpoint.folder import Contents, inside, read_contents
from moesaic.checkpoint.header import DTYPE_NAMES, StoredTensor, read_json
from moesaic.errors import CheckpointError

RECORD = "digest.json"


def digest(folder: Path | str, verify: bool = False) -> str:
    """The root digest of a checkpoint folder, in hexadecimal.

    Args:
        folder: the checkpoint.
        verify: read every byte, whatever ``digest.json`` says.

    Raises:
        CheckpointError: if a file is damaged, or a tensor is not the one ``digest.json`` was
            written for.
    """
    contents = read_contents(Path(folder))
    if contents.problems:
        raise CheckpointError(f"{folder} has no digest: {contents.problems[0].text}")
    record = _read_record(contents.folder)
    recorded: dict[str, str] = record.get("tensors", {})
    known = record.get("files") == _files(contents) and recorded.keys() == contents.tensors.keys()
    if known and not verify:
        return root(contents.tensors, recorded)
    digests = {name: _digest_of(stored) for name, stored in contents.tensors.items()}
    found = root(contents.tensors, digests)
    if record and record.get("root") != found:
        names = sorted(recorded.keys() | digests.keys())
        changed = [name for name in names if recorded.get(name) != digests.get(name)]
        what = f"tensor {changed[0]}" if changed else "the type or shape of a tensor"
        raise CheckpointError(
            f"{folder}: {what} changed since {RECORD} was written; fetch it again, or remove "
            f"{RECORD} if the change is meant"
        )
    if not known:
        with contextlib.suppress(CheckpointError):  # a folder we may not write to is read each time
            _store(contents, digests)
    return found


def store_digest(folder: Path, digests: Mapping[str, str]) -> str:
    """Write ``digest.json`` for tensors whose sha256 are known, and return the root digest."""
    return _store(read_contents(folder), digests)


def root(tensors: Mapping[str, StoredTensor], digests: Mapping[str, str]) -> str:
    """The digest of all tensors from the sha256 of each."""
    rows = [
        [name, DTYPE_NAMES[tensor.dtype], list(tensor.shape), digests[name]]
        for name, tensor in sorted(tensors.items())
    ]
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def _store(contents: Contents, digests: Mapping[str, str]) -> str:
    found = root(contents.tensors, digests)
    record = {"root": found, "files": _files(contents), "tensors": dict(sorted(digests.items()))}
    with new_file(contents.folder / RECORD) as file:
        file.write(json.dumps(record, indent=1).encode() + b"\n")
    return found


def _read_record(folder: Path) -> dict[str, Any]:
    """What ``digest.json`` says, or nothing if there is none."""
    if not (folder / RECORD).exists():
        return {}
    path = inside(folder, RECORD)
    record = read_json(path)
    tensors = record.get("tensors")
    if not isinstance(tensors, dict) or not all(isinstance(v, str) for v in tensors.values()):
        raise CheckpointError(f"{path} is not a record of digests; remove it")
    return record


def _files(contents: Contents) -> dict[str, list[int]]:
    """Size and modification time of every file of tensors."""
    found = [(path, path.stat()) for path in contents.files]
    return {path.name: [stat.st_size, stat.st_mtime_ns] for path, stat in found}


def _digest_of(stored: StoredTensor) -> str:
    value = hashlib.sha256()
    for chunk in read_chunks(stored):
        value.update(chunk)
    return value.hexdigest()
