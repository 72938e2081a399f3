"""The header of a safetensors file, checked in full before memory is taken for a tensor."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from moesaic.errors import CheckpointError
from moesaic.units import gb

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
"""Types by the names the format gives them."""
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

MAX_HEADER_BYTES = 32 * 2**20
"""Longest header or index that is read; one file naming 250,000 tensors stays below it."""
_MAX_ELEMENTS = 2**63 - 1
_FETCH = "the file is damaged: fetch it again"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies on disk, and what it is."""

    path: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """Its first byte, counted from the start of the file."""
    n_bytes: int
    file_bytes: int
    """Size of the file when it was checked."""


@dataclass(frozen=True, slots=True)
class Header:
    """What one safetensors file says it holds."""

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]
    file_bytes: int


def read_header(path: Path) -> Header:
    """The checked header of a safetensors file.

    Every tensor's type is known, its bytes fit type and shape, and the tensors fill the file from
    end to end without a gap or an overlap, so reading one later cannot run out of the file.

    Raises:
        CheckpointError: if any of that fails; the message names the tensor.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist or is not a file; fetch it again")
    try:
        with path.open("rb") as file:
            file_bytes = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            _check_length(path, length, file_bytes)
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); {_FETCH}") from None
    entries = parse_json(text, f"{path}: the header")
    metadata = _metadata(path, entries.pop("__metadata__", {}))
    data_start = 8 + length
    tensors = {
        name: _stored(path, name, entry, data_start, file_bytes) for name, entry in entries.items()
    }
    _check_layout(path, tensors, data_start, file_bytes)
    return Header(tensors, metadata, file_bytes)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CheckpointError: if the file cannot be read, is too large, or holds anything else.
    """
    try:
        size = path.stat().st_size
        if size > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{path} has {gb(size)}, more than the {gb(MAX_HEADER_BYTES)} that any checkpoint "
                "needs; fetch it again"
            )
        return parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); {_FETCH}") from None


def parse_json(text: bytes, what: str) -> dict[str, Any]:
    """The JSON object in ``text``: UTF-8, no key twice, not nested without end.

    Raises:
        CheckpointError: if it is anything else.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise CheckpointError(f"{what} names {twice} twice; {_FETCH}")
        return found

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is not JSON ({error}); {_FETCH}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} is not a JSON object; {_FETCH}")
    return value


def _check_length(path: Path, length: int, file_bytes: int) -> None:
    if file_bytes < 8:
        raise CheckpointError(f"{path} has {file_bytes} bytes, too few for a header; {_FETCH}")
    if length > file_bytes - 8:
        raise CheckpointError(
            f"{path} is {gb(file_bytes)}, its header alone is said to be {gb(length)}; the file is "
            "cut short or no safetensors file: fetch it again"
        )
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path}: the header is said to be {gb(length)}, more than the {gb(MAX_HEADER_BYTES)} "
            "that any checkpoint needs; do not use this file"
        )


def _metadata(path: Path, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise CheckpointError(f"{path}: __metadata__ is not a table of texts; {_FETCH}")
    return value


def _stored(path: Path, name: str, entry: Any, data_start: int, file_bytes: int) -> StoredTensor:
    """One entry of the header, its fields checked against each other."""
    where = f"{path}: tensor {name}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where} needs dtype, shape and data_offsets alone; {_FETCH}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape):
        raise CheckpointError(f"{where} has the shape {str(shape)[:80]}; {_FETCH}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where} has the data_offsets {str(offsets)[:80]}; {_FETCH}")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise CheckpointError(
            f"{where} has the unknown type {str(entry['dtype'])[:40]}; convert it to one of "
            f"{', '.join(DTYPES)}"
        )
    n_bytes = offsets[1] - offsets[0]
    needed = prod(shape) * dtype.itemsize
    if prod(size for size in shape if size) > _MAX_ELEMENTS or needed != n_bytes:
        raise CheckpointError(
            f"{where} of shape {shape} in {entry['dtype']} needs {needed:,} bytes, "
            f"its data_offsets give it {n_bytes:,}; {_FETCH}"
        )
    if data_start + offsets[1] > file_bytes:
        raise CheckpointError(
            f"{where} ends at byte {data_start + offsets[1]:,}, the file has {file_bytes:,}; "
            "the file is cut short: fetch it again"
        )
    start = data_start + offsets[0]
    return StoredTensor(path, name, dtype, tuple(shape), start, n_bytes, file_bytes)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _check_layout(
    path: Path, tensors: Mapping[str, StoredTensor], data_start: int, file_bytes: int
) -> None:
    """Refuse overlaps, gaps, and bytes that belong to no tensor."""
    end = data_start
    for tensor in sorted(tensors.values(), key=lambda t: (t.start, t.n_bytes)):
        if tensor.start != end:
            problem = "overlaps the tensor before it" if tensor.start < end else "leaves a gap"
            raise CheckpointError(f"{path}: tensor {tensor.name} {problem}; {_FETCH}")
        end += tensor.n_bytes
    if end != file_bytes:
        raise CheckpointError(
            f"{path} has {file_bytes - end:,} bytes after its last tensor; {_FETCH}"
        )
