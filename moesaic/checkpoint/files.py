"""One safetensors file: read a tensor at a time, written whole or not at all.

Any type the format knows is allowed here; what a model's weights may be is checked elsewhere.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from moesaic.checkpoint.atomic import new_file
from moesaic.checkpoint.header import DTYPE_NAMES, StoredTensor, read_header
from moesaic.errors import CheckpointError, suggest

_CHUNK_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor that is made when its turn to be written comes, and dropped after it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def n_bytes(self) -> int:
        """Its size on disk."""
        return prod(self.shape) * self.dtype.itemsize


def lazy(name: str, tensor: Tensor) -> LazyTensor:
    """A tensor that is there already, as one to be written."""
    return LazyTensor(name, tensor.dtype, tuple(tensor.shape), lambda: tensor)


def read_tensor(stored: StoredTensor) -> Tensor:
    """One tensor as it is stored, on the CPU.

    Raises:
        CheckpointError: if its file has changed since it was checked.
    """
    tensor = torch.empty(stored.shape, dtype=stored.dtype)
    fill_(tensor, stored)
    return tensor


def fill_(tensor: Tensor, stored: StoredTensor) -> None:
    """Read a stored tensor into one of the same shape and type, without a copy in between."""
    assert tensor.dtype == stored.dtype
    assert tensor.shape == stored.shape
    view = _bytes_of(tensor)
    with _opened(stored) as file:
        done = 0
        while done < len(view):
            done += _progress(file.readinto(view[done:]), stored)
    if stored.dtype == torch.bool and tensor.view(torch.uint8).gt(1).any():
        raise CheckpointError(
            f"{stored.path}: tensor {stored.name} is BOOL and holds bytes other than 0 and 1; "
            "the file is damaged: fetch it again"
        )


def read_chunks(stored: StoredTensor) -> Iterator[memoryview]:
    """The bytes of a stored tensor, a piece at a time; each is overwritten by the next."""
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, stored.n_bytes)))
    with _opened(stored) as file:
        left = stored.n_bytes
        while left:
            got = _progress(file.readinto(buffer[: min(left, len(buffer))]), stored)
            yield buffer[:got]
            left -= got


def read_safetensors(path: Path | str, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """The tensors of one file, or those of the given names, as they are stored.

    Raises:
        CheckpointError: if the file is damaged or lacks one of the names.
    """
    header = read_header(Path(path))
    wanted = list(header.tensors) if names is None else list(names)
    for name in wanted:
        if name not in header.tensors:
            raise CheckpointError(f"{path} has no tensor {name}{suggest(name, header.tensors)}")
    return {name: read_tensor(header.tensors[name]) for name in wanted}


def read_metadata(path: Path | str) -> dict[str, str]:
    """The texts stored in a file's header."""
    return read_header(Path(path)).metadata


def write_safetensors(
    path: Path | str,
    tensors: Mapping[str, Tensor] | Sequence[LazyTensor],
    metadata: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Write one file, whole or not at all, holding one lazy tensor in memory at a time.

    Tensors are made in the order given. On disk the widest types come first, so that every tensor
    is aligned for readers that map the file.

    Returns:
        The sha256 of each tensor's bytes, in hexadecimal.

    Raises:
        CheckpointError: if the disk is full or refuses; what was under ``path`` is still there.
    """
    pending = [lazy(*item) for item in tensors.items()] if isinstance(tensors, Mapping) else tensors
    starts, header = _lay_out(pending, metadata or {})
    with new_file(Path(path)) as file:
        file.write(header)
        return {t.name: _write(file, len(header) + starts[t.name], t) for t in pending}


def _lay_out(
    tensors: Sequence[LazyTensor], metadata: Mapping[str, str]
) -> tuple[dict[str, int], bytes]:
    """Where each tensor starts behind the header, and the header."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    starts: dict[str, int] = {}
    end = 0
    for tensor in sorted(tensors, key=lambda t: -t.dtype.itemsize):
        assert tensor.name not in starts, f"two tensors are called {tensor.name}"
        starts[tensor.name] = end
        end += tensor.n_bytes
        entries[tensor.name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [starts[tensor.name], end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return starts, len(text).to_bytes(8, "little") + text


def _write(file: BinaryIO, start: int, pending: LazyTensor) -> str:
    """Make one tensor, write its bytes at ``start``, and return their sha256."""
    tensor = pending.make()
    assert tensor.dtype == pending.dtype, f"{pending.name} was announced as {pending.dtype}"
    assert tensor.shape == pending.shape, f"{pending.name} was announced as {pending.shape}"
    view = _bytes_of(tensor.detach().cpu().contiguous())
    file.seek(start)
    file.write(view)
    return hashlib.sha256(view).hexdigest()


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, to be read from or written into."""
    return tensor.detach().view(-1).view(torch.uint8).numpy().data


@contextmanager
def _opened(stored: StoredTensor) -> Iterator[FileIO]:
    """The file of a tensor, at the tensor's first byte."""
    try:
        with stored.path.open("rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != stored.file_bytes:
                raise _changed(stored)
            file.seek(stored.start)
            yield file
    except OSError as error:
        raise CheckpointError(
            f"{stored.path}: tensor {stored.name} cannot be read ({error.strerror}); "
            "fetch the file again"
        ) from None


def _progress(got: int | None, stored: StoredTensor) -> int:
    if not got:
        raise _changed(stored)
    return got


def _changed(stored: StoredTensor) -> CheckpointError:
    return CheckpointError(
        f"{stored.path} changed its size before tensor {stored.name} was read from it; "
        "wait until it is written, and start again"
    )
