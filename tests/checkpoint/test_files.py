"""One safetensors file, written and read a tensor at a time."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from moesaic.checkpoint.files import (
    LazyTensor,
    lazy,
    read_metadata,
    read_safetensors,
    read_tensor,
    write_safetensors,
)
from moesaic.checkpoint.header import DTYPES, read_header
from moesaic.errors import CheckpointError


def _example(dtype: torch.dtype) -> Tensor:
    return torch.arange(6).reshape(2, 3).to(dtype)


EVERY_TYPE = {name: _example(dtype) for name, dtype in DTYPES.items()}
ODD_SHAPES = {
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 4),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "part": torch.arange(12.0)[::3],
    "parameter": torch.nn.Parameter(torch.ones(2)),
}


def test_every_type_comes_back_bit_for_bit(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", EVERY_TYPE)
    found = read_safetensors(tmp_path / "x.safetensors")
    assert {name: tensor.dtype for name, tensor in found.items()} == DTYPES
    for name, tensor in found.items():
        assert torch.equal(tensor.view(torch.uint8), EVERY_TYPE[name].view(torch.uint8))


def test_scalars_empty_and_strided_tensors_come_back(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", ODD_SHAPES)
    for name, tensor in read_safetensors(tmp_path / "x.safetensors").items():
        assert torch.equal(tensor, ODD_SHAPES[name].detach())


@pytest.mark.parity
def test_files_written_here_are_read_by_the_safetensors_library(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {**EVERY_TYPE, **ODD_SHAPES}, {"format": "pt"})
    found = safetensors.torch.load_file(path)
    assert found.keys() == EVERY_TYPE.keys() | ODD_SHAPES.keys()
    for name, tensor in found.items():
        wanted = (EVERY_TYPE | ODD_SHAPES)[name].detach().contiguous()
        assert tensor.dtype == wanted.dtype
        assert torch.equal(tensor.view(-1).view(torch.uint8), wanted.view(-1).view(torch.uint8))


@pytest.mark.parity
def test_files_written_by_the_safetensors_library_are_read_here(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(EVERY_TYPE, path, {"made_by": "them"})
    for name, tensor in read_safetensors(path).items():
        assert torch.equal(tensor.view(torch.uint8), EVERY_TYPE[name].view(torch.uint8))
    assert read_metadata(path) == {"made_by": "them"}


def test_one_lazy_tensor_is_alive_at_a_time(tmp_path: Path) -> None:
    alive: set[int] = set()
    most = []

    def make(number: int) -> Tensor:
        tensor = torch.full((4,), float(number))
        alive.add(number)
        weakref.finalize(tensor, alive.discard, number)
        most.append(len(alive))
        return tensor

    pending = [LazyTensor(f"t{n}", torch.float32, (4,), lambda n=n: make(n)) for n in range(5)]
    write_safetensors(tmp_path / "x.safetensors", pending)
    assert most == [1] * 5


def test_tensors_are_made_in_order_and_lie_aligned(tmp_path: Path) -> None:
    made: list[str] = []

    def announced(name: str, dtype: torch.dtype, size: int) -> LazyTensor:
        return LazyTensor(name, dtype, (size,), lambda: made.append(name) or _ones(size, dtype))

    sizes = [("a", torch.bool, 3), ("b", torch.float64, 1), ("c", torch.bfloat16, 5)]
    path = tmp_path / "x.safetensors"
    write_safetensors(path, [announced(*one) for one in sizes])
    assert made == ["a", "b", "c"]
    assert all(t.start % t.dtype.itemsize == 0 for t in read_header(path).tensors.values())


def test_only_the_tensors_asked_for_are_read(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", EVERY_TYPE)
    assert list(read_safetensors(tmp_path / "x.safetensors", ["F32"])) == ["F32"]


def test_a_name_that_is_not_there_gets_a_suggestion(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", {"weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match="has no tensor wieght; did you mean 'weight'"):
        read_safetensors(tmp_path / "x.safetensors", ["wieght"])


def test_digests_are_those_of_the_bytes_alone(tmp_path: Path) -> None:
    one = write_safetensors(tmp_path / "x.safetensors", {"a": torch.ones(2), "b": torch.zeros(2)})
    two = write_safetensors(tmp_path / "y.safetensors", [lazy("a", torch.ones(2))])
    assert one["a"] == two["a"] != one["b"]


def test_a_file_that_changes_after_it_was_checked_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"w": torch.ones(100)})
    stored = read_header(path).tensors["w"]
    write_safetensors(path, {"w": torch.ones(50)})
    with pytest.raises(CheckpointError, match="changed its size before tensor w was read"):
        read_tensor(stored)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"tensor w cannot be read .*fetch the file again"):
        read_tensor(stored)


def test_a_bool_that_is_neither_true_nor_false_is_refused(craft: Any) -> None:
    path = craft({"flag": {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]}}, b"\1\2")
    with pytest.raises(CheckpointError, match="tensor flag is BOOL and holds bytes other than 0"):
        read_safetensors(path)


def _ones(size: int, dtype: torch.dtype) -> Tensor:
    return torch.ones(size, dtype=dtype)
