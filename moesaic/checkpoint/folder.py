"""A checkpoint folder: which tensors it stores, and what is wrong with its files and index."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Literal

from moesaic.checkpoint.atomic import PARTIAL
from moesaic.checkpoint.header import StoredTensor, read_header, read_json
from moesaic.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

Kind = Literal["missing", "unexpected", "wrong shape", "wrong type", "damaged"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason not to read a checkpoint."""

    kind: Kind
    name: str
    """The tensor, or the file where no tensor can be named."""
    text: str
    """What is wrong and what to do."""


@dataclass(slots=True)
class Contents:
    """What the files of a folder hold, read from their headers alone."""

    folder: Path
    files: list[Path] = field(default_factory=list)
    """The files that hold tensors and could be read."""
    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    excused: set[str] = field(default_factory=set)
    """Tensors that are absent because of a problem already told."""

    def damaged(self, name: str, text: str) -> None:
        """Note a damaged file."""
        self.problems.append(Problem("damaged", name, text))


def read_contents(folder: Path) -> Contents:
    """Look into every file of a checkpoint folder; problems are collected, not raised.

    Raises:
        CheckpointError: if this is no folder, or it holds no weights that can be read.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give the folder of a checkpoint")
    contents = Contents(folder)
    if (folder / INDEX).exists():
        _read_indexed(contents)
    elif (folder / SINGLE).exists():
        _read_file(contents, SINGLE, None)
    else:
        raise CheckpointError(_no_weights(folder))
    _note_strangers(contents)
    return contents


def inside(folder: Path, name: str) -> Path:
    """The file ``name`` of a folder.

    Links that leave the folder are refused, but for those of a download cache, which keeps the
    files of ``snapshots/<revision>/`` in ``blobs/`` beside ``snapshots``.

    Raises:
        CheckpointError: if the name leads out of the folder.
    """
    pure = PurePath(name)
    if pure.name != name or name in ("", ".", "..") or "\\" in name or "\0" in name:
        raise CheckpointError(
            f"{folder}: the file name {name!r} leads out of the folder; do not use this checkpoint"
        )
    try:
        root, target = folder.resolve(), (folder / name).resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise CheckpointError(
            f"{folder / name} cannot be found ({error}); fetch it again"
        ) from None
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    if target.parent not in allowed:
        raise CheckpointError(
            f"{folder / name} is a link to {target}, out of the folder; put the file itself there"
        )
    return folder / name


def _read_indexed(contents: Contents) -> None:
    """Read the files that the index names, and hold the index to what they store."""
    index_path = inside(contents.folder, INDEX)
    index = _read_index(index_path)
    by_file: dict[str, set[str]] = {}
    for tensor, file in index["weight_map"].items():
        by_file.setdefault(file, set()).add(tensor)
    for file, listed in sorted(by_file.items()):
        _read_file(contents, file, listed)
    total = sum(tensor.n_bytes for tensor in contents.tensors.values())
    metadata = index.get("metadata")
    stated = metadata.get("total_size") if isinstance(metadata, dict) else None
    if stated not in (None, total) and not contents.problems:
        contents.warnings.append(
            f"{INDEX} says total_size={stated}, its tensors have {total} bytes; nothing reads it"
        )


def _read_index(path: Path) -> dict[str, Any]:
    index = read_json(path)
    weights = index.get("weight_map")
    if not isinstance(weights, dict) or not all(isinstance(f, str) for f in weights.values()):
        raise CheckpointError(f"{path} has no weight_map of tensor → file; fetch it again")
    return index


def _read_file(contents: Contents, name: str, listed: set[str] | None) -> None:
    """Take in the tensors of one file; ``listed`` are those the index expects in it."""
    try:
        path = inside(contents.folder, name)
        header = read_header(path)
    except CheckpointError as error:
        tensors = f" (it should hold {_some(listed)})" if listed else ""
        contents.damaged(name, f"{error}{tensors}")
        contents.excused |= listed or set()
        return
    contents.files.append(path)
    stored = header.tensors
    for tensor in sorted((listed or set()) - set(stored)):
        text = f"{INDEX} places {tensor} in {name}, which does not hold it; fetch both again"
        contents.problems.append(Problem("missing", tensor, text))
        contents.excused.add(tensor)
    for tensor, entry in stored.items():
        if tensor in contents.tensors:
            other = contents.tensors[tensor].path.name
            text = f"{tensor} is stored twice, in {other} and in {name}; remove one of the files"
            contents.problems.append(Problem("unexpected", tensor, text))
        elif listed is not None and tensor not in listed:
            text = f"{name} holds {tensor}, which {INDEX} does not place there; fetch both again"
            contents.problems.append(Problem("unexpected", tensor, text))
        contents.tensors.setdefault(tensor, entry)


def _note_strangers(contents: Contents) -> None:
    """Warn of files that look as if they belonged to the checkpoint and do not."""
    read = {path.name for path in contents.files} | {p.name for p in contents.problems}
    for path in sorted(contents.folder.iterdir()):
        if PARTIAL in path.name:
            contents.warnings.append(f"{path.name} was left by a write that did not end; remove it")
        elif path.suffix == ".safetensors" and path.name not in read:
            contents.warnings.append(f"{path.name} is no part of the checkpoint; it is not read")
        elif path.suffix in _PICKLES:
            contents.warnings.append(f"{path.name} could run code when read; it is not read")


def _no_weights(folder: Path) -> str:
    """Why a folder without index and single file cannot be read."""
    names = [path.name for path in sorted(folder.iterdir())]
    pickles = [name for name in names if name.endswith(_PICKLES)]
    pieces = [name for name in names if name.endswith(".safetensors")]
    if pieces:
        return f"{folder} holds {_some(pieces)} but no {INDEX}; fetch the index too"
    if pickles:
        return (
            f"{folder} holds weights as {_some(pickles)} only, a format that can run code when it "
            "is read; convert them to safetensors, for example with save_pretrained of "
            "transformers, and give that folder"
        )
    return f"{folder} holds no {SINGLE} and no {INDEX}; give the folder of a checkpoint"


def _some(names: set[str] | list[str] | None) -> str:
    """The first names of many."""
    listed = sorted(names or ())
    more = f" and {len(listed) - 2} more" if len(listed) > 2 else ""
    return ", ".join(listed[:2]) + more


def files_beside(folder: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """Those of the named files that a folder has."""
    for name in names:
        if (folder / name).exists():
            yield inside(folder, name)
