"""Read documents from text, JSONL and Parquet files, from any place in the file."""

import contextlib
import gzip
import json
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from moesaic.config.data import SourceConfig
from moesaic.data.documents import Document
from moesaic.data.forms import check_columns, document_from_row, fields_read
from moesaic.errors import DataError, suggest

_OPENERS: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
_FORMATS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where the next document of a file begins."""

    offset: int = 0
    """Bytes after decompression; rows of a Parquet file."""
    row: int = 0
    """Lines, or documents of a text file, before it."""


def read_documents(
    path: Path, config: SourceConfig, start: Place
) -> Iterator[tuple[Document, Place]]:
    """The documents of a file from ``start`` on, each with the place after it.

    Raises:
        DataError: if the file cannot be read, or a row is not a document; names file and line.
    """
    readers = {"text": _read_text, "jsonl": _read_jsonl, "parquet": _read_parquet}
    reader = readers[config.format or _format_by_ending(path)]
    yield from reader(path, config, start)


def _format_by_ending(path: Path) -> str:
    ending = path.with_suffix("").suffix if path.suffix in _OPENERS else path.suffix
    if ending not in _FORMATS:
        hint = suggest(ending, _FORMATS)
        raise DataError(
            f"{path}: the ending {ending!r} tells no format{hint}; set the source's format to "
            "'text', 'jsonl' or 'parquet'"
        )
    return _FORMATS[ending]


@contextlib.contextmanager
def open_bytes(path: Path, offset: int = 0) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked if its name ends in .gz or .xz, from an offset on.

    Raises:
        DataError: if it cannot be opened, or what is read of it is damaged.
    """
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as stream:
            stream.seek(offset)
            yield stream
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged ({error}); fetch it again") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from None


@contextlib.contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """A Parquet file as pyarrow's ``ParquetFile``.

    Raises:
        DataError: if it cannot be opened, or is damaged, or pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"{path} needs pyarrow, which is not installed; run: pip install 'moesaic[data]'"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path} is no Parquet file ({error}); fetch it again") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from None


def _read_jsonl(path: Path, config: SourceConfig, start: Place) -> Iterator[tuple[Document, Place]]:
    place = start
    with open_bytes(path, start.offset) as stream:
        for line in stream:
            place = Place(place.offset + len(line), place.row + 1)
            if line.isspace():
                continue
            where = f"{path}:{place.row}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{where}: not JSON ({error}); repair or remove the line") from None
            yield document_from_row(row, config, where), place


def _read_text(path: Path, config: SourceConfig, start: Place) -> Iterator[tuple[Document, Place]]:
    place = start
    separator = None if config.separator is None else config.separator.encode()
    with open_bytes(path, start.offset) as stream:
        for piece, length in _pieces(stream, separator):
            place = Place(place.offset + length, place.row + 1)
            if piece.isspace() or not piece:
                continue
            where = str(path) if separator is None else f"{path}, document {place.row}"
            try:
                text = piece.decode()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{where}: not UTF-8 (byte {error.start} is {piece[error.start]:#x}); "
                    "convert the file"
                ) from None
            yield Document(text, where=where), place


def _pieces(stream: IO[bytes], separator: bytes | None) -> Iterator[tuple[bytes, int]]:
    """What stands between separators, and how many bytes to the next piece."""
    if separator is None:
        whole = stream.read()
        yield whole, len(whole)
        return
    rest = b""
    while chunk := stream.read(_CHUNK_BYTES):
        *pieces, rest = (rest + chunk).split(separator)
        for piece in pieces:
            yield piece, len(piece) + len(separator)
    yield rest, len(rest)


def _read_parquet(
    path: Path, config: SourceConfig, start: Place
) -> Iterator[tuple[Document, Place]]:
    with open_parquet(path) as file:
        yield from _parquet_rows(file, path, config, start.offset)


def _parquet_rows(
    file: Any, path: Path, config: SourceConfig, start: int
) -> Iterator[tuple[Document, Place]]:
    names, read = file.schema_arrow.names, fields_read(config)
    check_columns(names, config, str(path))
    columns = [name for name in names if name in read]
    first = 0
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        if first + size > start:
            number = first
            for batch in file.iter_batches(1024, row_groups=[group], columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    if number > start:
                        document = document_from_row(row, config, f"{path}, row {number}")
                        yield document, Place(number, number)
        first += size
