"""Where the files of a data set are found, and what is said when they are not."""

import json
from hashlib import sha256
from pathlib import Path

import pytest

from moesaic.errors import DataError
from moesaic.eval.items import Row
from moesaic.eval.task import Item
from moesaic.eval.tasks.files import Split, load


def item(row: Row) -> Item | None:
    return {"a": row.number("a")} if row.number("a") >= 0 else None


SPLIT = Split("toy's test split", ("toy_test", "toy/*/test", "toy"), "a", item)


def put(path: Path, *numbers: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"a": number}) + "\n" for number in numbers))
    return path


@pytest.mark.parametrize(
    "name",
    ["toy_test.jsonl", "deep/er/toy_test.json", "toy/main/test.jsonl", "toy.jsonl"],
)
def test_a_file_goes_by_several_names_in_any_folder(tmp_path: Path, name: str):
    put(tmp_path / name, 1, 2)
    loaded = load(SPLIT, tmp_path)
    assert loaded.items == [{"a": 1}, {"a": 2}]
    assert loaded.origin["files"] == [name]


def test_the_preferred_name_is_read(tmp_path: Path):
    put(tmp_path / "toy.jsonl", 1)
    put(tmp_path / "x" / "toy_test.jsonl", 2)
    assert load(SPLIT, tmp_path).items == [{"a": 2}]


def test_a_longer_name_is_another_file(tmp_path: Path):
    put(tmp_path / "toy_test.jsonl", 1)
    put(tmp_path / "toy_test_backward.jsonl", 2)
    assert load(SPLIT, tmp_path).items == [{"a": 1}]


def test_pieces_of_a_split_are_read_in_order(tmp_path: Path):
    put(tmp_path / "toy_test-00001-of-00002.jsonl", 2)
    put(tmp_path / "toy_test-00000-of-00002.jsonl", 1)
    assert load(SPLIT, tmp_path).items == [{"a": 1}, {"a": 2}]


def test_a_star_matches_several_files(tmp_path: Path):
    put(tmp_path / "toy" / "b" / "test.jsonl", 2)
    put(tmp_path / "toy" / "a" / "test.jsonl", 1)
    assert load(SPLIT, tmp_path).items == [{"a": 1}, {"a": 2}]


def test_rows_of_another_part_are_left_out(tmp_path: Path):
    put(tmp_path / "toy.jsonl", -1, 1)
    assert load(SPLIT, tmp_path).items == [{"a": 1}]


def test_the_content_of_the_files_has_a_digest(tmp_path: Path):
    file = put(tmp_path / "toy.jsonl", 1)
    assert load(SPLIT, tmp_path).origin["sha256"] == sha256(file.read_bytes()).hexdigest()


def test_two_files_of_one_name_compete(tmp_path: Path):
    put(tmp_path / "toy.jsonl", 1)
    put(tmp_path / "x" / "toy.jsonl", 2)
    with pytest.raises(DataError, match=r"toy.jsonl and .*x/toy.jsonl are both toy's test split"):
        load(SPLIT, tmp_path)


def test_an_absent_file_is_asked_for_by_its_names_and_fields(tmp_path: Path):
    (tmp_path / "toy.csv").write_text("a\n1\n")
    message = (
        r"has no file of toy's test split; .* named toy_test or toy/\*/test or toy, .* fields a$"
    )
    with pytest.raises(DataError, match=message):
        load(SPLIT, tmp_path)


def test_the_folder_must_be_one(tmp_path: Path):
    with pytest.raises(DataError, match="none is no folder; give the one that holds the files"):
        load(SPLIT, tmp_path / "none")


def test_a_wrong_row_is_named_with_the_fields_that_are_read(tmp_path: Path):
    put(tmp_path / "toy.jsonl", 1, "x")
    message = "toy.jsonl:2: a is 'x', which is not a whole number; toy's test split has rows of a"
    with pytest.raises(DataError, match=message):
        load(SPLIT, tmp_path)


def test_a_file_without_rows_of_the_split_is_named(tmp_path: Path):
    put(tmp_path / "toy.jsonl", -1)
    with pytest.raises(DataError, match=r"toy\.jsonl has no rows of toy's test split"):
        load(SPLIT, tmp_path)
