"""Rows of data sets: formats, typed fields, and what is said of those that are wrong."""

import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from moesaic.errors import DataError
from moesaic.eval.items import ENDINGS, Row, read_rows

ROWS = [{"question": "Wie viel?", "answer": 3}, {"question": "多少？", "answer": 4}]  # noqa: RUF001
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def write_parquet(path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


WRITERS: dict[str, Callable[[Path], object]] = {
    ".jsonl": lambda path: path.write_bytes(LINES),
    ".json": lambda path: path.write_bytes(b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n\r\n")),
    ".jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    ".jsonl.xz": lambda path: path.write_bytes(lzma.compress(LINES)),
    ".parquet": write_parquet,
}


@pytest.mark.parametrize("ending", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path: Path, ending: str):
    path = tmp_path / f"rows{ending}"
    WRITERS[ending](path)
    assert [row.fields for row in read_rows(path)] == ROWS
    assert ending in ENDINGS


def test_the_first_line_of_a_tsv_file_names_its_columns(tmp_path: Path):
    path = tmp_path / "rows.tsv"
    path.write_text('question\tanswer\nHow "many"?\t3\n')
    assert [row.fields for row in read_rows(path)] == [{"question": 'How "many"?', "answer": "3"}]


def test_a_tsv_file_without_a_heading_is_read_by_given_columns(tmp_path: Path):
    path = tmp_path / "rows.tsv.xz"
    path.write_bytes(lzma.compress(b"How many?\t2,125\n"))
    [row] = read_rows(path, ("question", "answer"))
    assert (row.text("question"), row.number("answer")) == ("How many?", 2125)


def test_a_row_says_where_it_stands(tmp_path: Path):
    lines, table = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
    lines.write_bytes(b"\n" + LINES)
    write_parquet(table)
    assert [row.where for row in read_rows(lines)] == [f"{lines}:2", f"{lines}:3"]
    assert [row.where for row in read_rows(table)] == [f"{table}, row 1", f"{table}, row 2"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"a.jsonl:2: not JSON \(.*one JSON object per line"),
        ("a.jsonl", b"[1]\n", "a.jsonl:1: a JSON list, where one object .* export the rows"),
        ("a.jsonl", b'{"a": "\xff"}\n', r"a.jsonl:1: not UTF-8 \(byte 7 is 0xff\); convert"),
        ("a.tsv", b"q\ta\nx\t1\ty\n", r"a.tsv:2: 3 columns, where 2 are read \(q, a\)"),
        ("a.jsonl.gz", b"not packed", "a.jsonl.gz is damaged .* fetch it again"),
        ("a.jsonl.xz", lzma.compress(LINES)[:-20], "a.jsonl.xz is damaged .* fetch it again"),
        ("a.parquet", b"not a table", "a.parquet is no Parquet file .* fetch it again"),
    ],
)
def test_an_unreadable_file_is_named_with_its_line(
    tmp_path: Path, name: str, content: bytes, message: str
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_rows(tmp_path / name))


def test_an_absent_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"none.jsonl cannot be read \(No such file"):
        list(read_rows(tmp_path / "none.jsonl"))


ROW = Row("f:1", {"t": "x", "n": 3, "l": ["a", "b"], "p": {"q": "y"}, "none": None})


def test_a_row_gives_typed_fields():
    assert ROW.text("t") == "x"
    assert ROW.number("n") == 3
    assert ROW.texts("l") == ["a", "b"]
    assert ROW.index("n", 4) == 3
    assert ROW.one_of("t", "wx") == 1
    assert ROW.part("p").text("q") == "y"


def test_rows_are_the_same_if_their_fields_are():
    assert Row("f:1", {"a": 1, "b": 2}).digest == Row("g:2", {"b": 2, "a": 1}).digest
    assert Row("f:1", {"a": 1}).digest != Row("f:1", {"a": 2}).digest


def test_a_null_field_is_not_there():
    assert ROW.has("t", "n")
    assert not ROW.has("t", "none")
    assert not ROW.has("absent")


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda row: row.text("q"), "f:1: no field 'q'; the row's fields are: t, n, l, p, none"),
        (lambda row: row.text("n"), "f:1: n is 3, which is not text"),
        (lambda row: row.texts("t"), "f:1: t is 'x', which is not a list of texts"),
        (lambda row: row.number("t"), "f:1: t is 'x', which is not a whole number"),
        (lambda row: row.number("none"), "f:1: none is None, which is not a whole number"),
        (lambda row: row.index("n", 3), "f:1: n is 3, which is not a number from 0 to 2"),
        (lambda row: row.one_of("t", "ab"), "f:1: t is 'x', which is not one of a, b"),
        (lambda row: row.part("l"), "f:1: l is .*, which is not an object with fields"),
        (lambda row: row.part("p").text("r"), "f:1, p: no field 'r'; the row's fields are: q"),
    ],
)
def test_a_wrong_field_is_named_with_its_place(read: Callable[[Row], object], message: str):
    with pytest.raises(DataError, match=message):
        read(ROW)
