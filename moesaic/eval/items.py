"""`Row`: one row of a data set's file, with its place and typed fields.

Files are JSONL (also packed with gzip or xz), TSV and Parquet.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.data.readers import open_bytes, open_parquet
from moesaic.errors import DataError
from moesaic.eval.task import Item

ENDINGS = (
    *(
        f"{kind}{packed}"
        for kind in (".jsonl", ".ndjson", ".json", ".tsv")
        for packed in ("", ".gz", ".xz")
    ),
    ".parquet",
)
"""How the names of readable files end; ``.json`` holds one object per line too."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file."""

    where: str
    """File and line, for messages."""
    fields: Item

    @property
    def digest(self) -> str:
        """The same for rows with the same fields, wherever they stand."""
        text = json.dumps(self.fields, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def has(self, *names: str) -> bool:
        """Whether all these fields are there and not null."""
        return all(self.fields.get(name) is not None for name in names)

    def text(self, name: str) -> str:
        """A field that is text.

        Raises:
            DataError: if it is absent or something else; so do the other readers of fields.
        """
        value = self._value(name)
        if not isinstance(value, str):
            raise self._wrong(name, value, "text")
        return value

    def texts(self, name: str) -> list[str]:
        """A field that is a list of texts."""
        value = self._value(name)
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise self._wrong(name, value, "a list of texts")
        return value

    def number(self, name: str) -> int:
        """A field that is a whole number, also one written as text: ``2,125``."""
        value = self._value(name)
        try:
            return int(value.replace(",", "") if isinstance(value, str) else value)
        except (TypeError, ValueError):
            raise self._wrong(name, value, "a whole number") from None

    def index(self, name: str, size: int) -> int:
        """A field that is the place of one of ``size`` things, from 0 on."""
        value = self.number(name)
        if not 0 <= value < size:
            raise self._wrong(name, value, f"a number from 0 to {size - 1}")
        return value

    def one_of(self, name: str, known: Sequence[str]) -> int:
        """The place of a field's text, without white space before it, among known ones."""
        value = self.text(name).lstrip()
        if value not in known:
            raise self._wrong(name, value, f"one of {', '.join(known)}")
        return known.index(value)

    def part(self, name: str) -> "Row":
        """A field that has fields itself."""
        value = self._value(name)
        if not isinstance(value, dict):
            raise self._wrong(name, value, "an object with fields of its own")
        return Row(f"{self.where}, {name}", value)

    def _value(self, name: str) -> Any:
        if name not in self.fields:
            there = ", ".join(self.fields) or "none"
            raise DataError(f"{self.where}: no field {name!r}; the row's fields are: {there}")
        return self.fields[name]

    def _wrong(self, name: str, value: Any, wanted: str) -> DataError:
        return DataError(f"{self.where}: {name} is {value!r}, which is not {wanted}")


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of a file, in its order, one in memory at a time.

    Args:
        path: the file; its ending tells the format, see `ENDINGS`.
        columns: what the columns of a TSV file mean; None if its first line says so.

    Raises:
        DataError: if the file cannot be read, or a row is none; names file and line.
    """
    if path.suffix == ".parquet":
        yield from _read_parquet(path)
    elif ".tsv" in path.suffixes[-2:]:
        yield from _read_tsv(path, columns)
    else:
        yield from _read_jsonl(path)


def _read_jsonl(path: Path) -> Iterator[Row]:
    for where, line in _lines(path):
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"{where}: not JSON ({error}); a file has one JSON object per line"
            ) from None
        if not isinstance(fields, dict):
            raise DataError(
                f"{where}: a JSON {type(fields).__name__}, where one object per line is read; "
                "export the rows as JSON lines"
            )
        yield Row(where, fields)


def _read_tsv(path: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    for where, line in _lines(path):
        cells = line.split("\t")
        if columns is None:
            columns = cells
            continue
        if len(cells) != len(columns):
            raise DataError(
                f"{where}: {len(cells)} columns, where {len(columns)} are read "
                f"({', '.join(columns)}); separate them by one tab each"
            )
        yield Row(where, dict(zip(columns, cells, strict=True)))


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Lines that are not blank, without their ends, each with its place."""
    with open_bytes(path) as stream:
        for number, line in enumerate(stream, start=1):
            where = f"{path}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{where}: not UTF-8 (byte {error.start} is {line[error.start]:#x}); "
                    "convert the file"
                ) from None
            if text.strip():
                yield where, text


def _read_parquet(path: Path) -> Iterator[Row]:
    number = 0
    with open_parquet(path) as file:
        for batch in file.iter_batches(1024):
            for fields in batch.to_pylist():
                number += 1
                yield Row(f"{path}, row {number}", fields)
