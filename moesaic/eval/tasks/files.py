"""`Split`: the part of a data set that a task reads, found in a folder by the names it goes by."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from moesaic.errors import DataError
from moesaic.eval.items import ENDINGS, Row, read_rows
from moesaic.eval.task import Item

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Split:
    """Where the rows of a part of a data set are looked for, and what becomes of them."""

    title: str
    """What messages call it: ``gsm8k's questions``."""
    names: Sequence[str]
    """Names of files without their endings, the preferred first; a ``*`` may match several files.
    Each is looked for in the folder and all folders in it."""
    fields: str
    """The fields of its rows, in every form that is read."""
    item: Callable[[Row], Item | None]
    """An item made of a row; None for a row of another part of the data set."""
    columns: Sequence[str] | None = None
    """What the columns of a TSV file without a heading mean."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The items of a split."""

    items: Sequence[Item]
    origin: dict[str, Any]
    """Files and a digest of what is in them, as JSON values."""


def load(split: Split, data: Path) -> Loaded:
    """Read a split from the files in a folder.

    Raises:
        DataError: if no file has one of its names, several compete for one, or a row lacks what
            is asked about.
    """
    files = _find(split, data)
    digest = hashlib.sha256()
    items: list[Item] = []
    for file in files:
        items += _items(split, file)
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    if not items:
        raise DataError(f"{files[0]} has no rows of {split.title}; its rows have {split.fields}")
    names = [file.relative_to(data).as_posix() for file in files]
    return Loaded(items, {"files": names, "sha256": digest.hexdigest()})


def _items(split: Split, file: Path) -> Iterator[Item]:
    for row in read_rows(file, split.columns):
        try:
            item = split.item(row)
        except DataError as error:
            raise DataError(f"{error}; {split.title} has rows of {split.fields}") from None
        if item is not None:
            yield item


def _find(split: Split, data: Path) -> list[Path]:
    if not data.is_dir():
        raise DataError(f"{data} is no folder; give the one that holds the files of data sets")
    stems = {file: _stem(file) for file in sorted(data.rglob("*")) if file.is_file()}
    for name in split.names:
        for pattern in (name, f"{name}-*-of-*"):
            found = [
                file for file, stem in stems.items() if stem is not None and stem.match(pattern)
            ]
            if len(found) > 1 and "*" not in pattern:
                raise DataError(
                    f"{found[0]} and {found[1]} are both {split.title}; keep one of them"
                )
            if found:
                return found
    raise DataError(
        f"{data} has no file of {split.title}; put one there, in any sub-folder, named "
        f"{' or '.join(split.names)}, with the ending .jsonl, .jsonl.gz, .jsonl.xz, .tsv or "
        f".parquet and the fields {split.fields}"
    )


def _stem(file: Path) -> PurePath | None:
    """A file's path without its ending, if that can be read."""
    for ending in ENDINGS:
        if file.name.endswith(ending):
            return file.with_name(file.name.removesuffix(ending))
    return None
