"""What a safetensors header may say; everything else is refused before a tensor is read."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moesaic.checkpoint.files import read_tensor, write_safetensors
from moesaic.checkpoint.header import MAX_HEADER_BYTES, read_header
from moesaic.errors import CheckpointError

FOUR_FLOATS = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def test_a_sound_file_is_described(craft: Any) -> None:
    header = read_header(craft({"w": FOUR_FLOATS, "__metadata__": {"format": "pt"}}, bytes(16)))
    stored = header.tensors["w"]
    assert (stored.dtype, stored.shape, stored.n_bytes) == (torch.float32, (2, 2), 16)
    assert header.metadata == {"format": "pt"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "F99"}, "tensor w has the unknown type F99; convert it to one of BOOL, U8"),
        ({"dtype": ["F32"]}, "tensor w has the unknown type"),
        ({"shape": [2, 3]}, r"tensor w of shape \[2, 3\] in F32 needs 24 bytes.*give it 16"),
        ({"shape": [2**40, 2**40]}, "tensor w of shape .* needs 4,835,703,278,458,516,698,824,704"),
        ({"shape": [0, 2**70], "data_offsets": [0, 0]}, "tensor w of shape .* needs 0 bytes"),
        ({"shape": [-2, -2]}, r"tensor w has the shape \[-2, -2\]"),
        ({"shape": [2.0, 2.0]}, r"tensor w has the shape \[2.0, 2.0\]"),
        ({"shape": [True, 4]}, r"tensor w has the shape \[True, 4\]"),
        ({"shape": 4}, "tensor w has the shape 4"),
        ({"data_offsets": [16, 0]}, r"tensor w has the data_offsets \[16, 0\]"),
        ({"data_offsets": [0, 16, 32]}, "tensor w has the data_offsets"),
        ({"data_offsets": [-16, 0]}, "tensor w has the data_offsets"),
        ({"data_offsets": None}, "tensor w has the data_offsets None"),
        ({"strides": [2, 1]}, "tensor w needs dtype, shape and data_offsets alone"),
    ],
)
def test_an_entry_that_contradicts_itself_is_refused(
    craft: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_header(craft({"w": {**FOUR_FLOATS, **changes}}, bytes(16)))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"w": ', "the header is not JSON .*fetch it again"),
        (b"[1, 2]", "the header is not a JSON object"),
        (b"\xff\xfe", "the header is not JSON"),
        (b"[" * 200_000, "the header is not JSON"),
        (b'{"w": {}, "w": {}}', "the header names w twice"),
        (b'{"w": 3}', "tensor w needs dtype, shape and data_offsets alone"),
        (b'{"__metadata__": {"step": 3}}', "__metadata__ is not a table of texts"),
        (b'{"w": {"dtype": "F32", "shape": [' + b"9" * 5000 + b"]}}", "the header is not JSON"),
    ],
)
def test_a_header_that_is_no_table_of_tensors_is_refused(
    craft: Any, header: bytes, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_header(craft(header))


def test_a_file_cut_short_is_refused_by_the_name_of_its_tensor(craft: Any) -> None:
    path = craft({"w": FOUR_FLOATS}, bytes(15))
    with pytest.raises(
        CheckpointError, match=r"tensor w ends at byte .* cut short: fetch it again"
    ):
        read_header(path)


def test_bytes_after_the_last_tensor_are_refused(craft: Any) -> None:
    with pytest.raises(CheckpointError, match="has 3 bytes after its last tensor"):
        read_header(craft({"w": FOUR_FLOATS}, bytes(19)))


@pytest.mark.parametrize(
    ("start", "problem"), [(8, "overlaps the tensor before"), (20, "leaves a gap")]
)
def test_tensors_that_overlap_or_leave_gaps_are_refused(
    craft: Any, start: int, problem: str
) -> None:
    second = {**FOUR_FLOATS, "data_offsets": [start, start + 16]}
    with pytest.raises(CheckpointError, match=f"tensor v {problem}"):
        read_header(craft({"w": FOUR_FLOATS, "v": second}, bytes(start + 16)))


def test_a_header_longer_than_its_file_is_refused(craft: Any) -> None:
    with pytest.raises(CheckpointError, match=r"its header alone is said to be 18446744.* TB"):
        read_header(craft(b"{}", length=2**64 - 1))


def test_a_header_of_absurd_length_is_refused_before_it_is_read(craft: Any) -> None:
    path = craft(b"{}", length=MAX_HEADER_BYTES + 1)
    with path.open("r+b") as file:
        file.truncate(2 * MAX_HEADER_BYTES)  # the file is long enough, and empty on disk
    with pytest.raises(CheckpointError, match=r"more than the 33.6 MB that any checkpoint needs"):
        read_header(path)


def test_a_file_without_room_for_a_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.safetensors"
    path.write_bytes(b"1234567")
    with pytest.raises(CheckpointError, match="has 7 bytes, too few for a header"):
        read_header(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist or is not a file"):
        read_header(tmp_path)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_damage_is_refused_or_harmless(tmp_path: Path, damage: list[tuple[int, int]]) -> None:
    """Whatever bytes are changed, a file is refused or every tensor it names can be read."""
    path = tmp_path / "damaged.safetensors"
    write_safetensors(path, {"w": torch.ones(3, 4), "flags": torch.ones(5, dtype=torch.bool)})
    content = bytearray(path.read_bytes())
    for place, value in damage:
        content[place % len(content)] = value
    path.write_bytes(bytes(content))
    with suppress(CheckpointError):
        for stored in read_header(path).tensors.values():
            assert read_tensor(stored).shape == stored.shape
