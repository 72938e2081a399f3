"""`Source`: the files of one source, read in a given order from a given place."""

import glob
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moesaic.config.data import SourceConfig
from moesaic.data import corpus
from moesaic.data.documents import Document
from moesaic.data.readers import Place, read_documents
from moesaic.errors import DataError

CORPUS_PREFIX = "corpus:"


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a pass over a source has come."""

    file: int = 0
    """Files finished, in the order of the pass."""
    offset: int = 0
    """Place in the next file; see `Place`."""
    row: int = 0
    """Rows read of it."""
    documents: int = 0
    """Documents of the split passed so far, over all files."""


class Source:
    """The documents of one source that belong to its split."""

    def __init__(self, config: SourceConfig, held_out_share: float) -> None:
        """Find the files.

        Raises:
            DataError: if there are none.
        """
        self.config = config
        self.held_out_share = held_out_share
        self.files = find_files(config.path)

    @property
    def digest(self) -> str:
        """Names and sizes of the files, hashed: changes when a saved place may not fit any more."""
        sizes = [(file.name, file.stat().st_size) for file in self.files]
        return hashlib.sha256(repr(sizes).encode()).hexdigest()

    def read(
        self, order: Sequence[int] | None = None, start: Cursor | None = None
    ) -> Iterator[tuple[Document, Cursor]]:
        """One pass over the documents, each with the cursor after it.

        Args:
            order: in which the files are read; None for the order of their names.
            start: where an earlier pass in the same order had come to.
        """
        cursor = start or Cursor()
        order = range(len(self.files)) if order is None else order
        for index in order[cursor.file :]:
            start_place = Place(cursor.offset, cursor.row)
            for document, place in read_documents(self.files[index], self.config, start_place):
                if document.is_in(self.config.split, self.held_out_share):
                    cursor = Cursor(cursor.file, place.offset, place.row, cursor.documents + 1)
                    yield document, cursor
            cursor = Cursor(cursor.file + 1, documents=cursor.documents)


def find_files(path: str) -> list[Path]:
    """The files that a source's path names, sorted.

    Raises:
        DataError: if it names none.
    """
    if path.startswith(CORPUS_PREFIX):
        return [corpus.file_of(path.removeprefix(CORPUS_PREFIX))]
    if Path(path).is_file():
        return [Path(path)]
    files = sorted(Path(found) for found in glob.glob(path, recursive=True))
    files = [file for file in files if file.is_file()]
    if not files:
        if Path(path).is_dir():
            raise DataError(f"source {path!r} is a folder; give a pattern like '{path}/*.jsonl'")
        raise DataError(f"source {path!r} matches no file; correct the path or the pattern")
    return files
