"""Files and folders that appear under their name whole, or not at all.

What is being written lies beside its place under a name with ``.partial-`` in it, locked by the
process that writes it. A process that is killed leaves only such a name behind; the next one to
write there removes it.
"""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from moesaic.errors import CheckpointError
from moesaic.units import gb

PARTIAL = ".partial-"
"""Part of every name under which something unfinished lies."""


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, renamed to ``path`` when the block ends without an error.

    Raises:
        CheckpointError: if the disk is full or refuses; what was under ``path`` is still there.
    """
    partial = _partial_name(path)
    with _as_checkpoint_error(path):
        remove_partials(path)
        try:
            with partial.open("xb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield file
                file.flush()
                os.fsync(file.fileno())
                partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync(path.parent)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, renamed to ``folder`` when the block ends without an error.

    Raises:
        CheckpointError: if ``folder`` holds something already, or the disk is full or refuses.
    """
    refuse_filled(folder)
    partial = _partial_name(folder)
    with _as_checkpoint_error(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_partials(folder)
        try:
            partial.mkdir()
            with _locked(partial):
                yield partial
                for path in (*partial.rglob("*"), partial):
                    _sync(path)
                partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _sync(folder.parent)


def refuse_filled(folder: Path) -> None:
    """Raise a `CheckpointError` unless ``folder`` is empty or does not exist."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} is not empty; give a new folder, or empty this one first")


def check_space(path: Path, n_bytes: int) -> None:
    """Raise a `CheckpointError` unless the disk that ``path`` will be on has room."""
    there = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(there).free
    if n_bytes > free:
        raise CheckpointError(
            f"{path} needs {gb(n_bytes)}, {there} has {gb(free)} free; free some space or choose "
            "another place"
        )


def remove_partials(path: Path) -> None:
    """Remove what processes that were killed left while writing ``path``.

    What another living process is writing stays: it holds the lock.
    """
    for partial in path.parent.glob(f"{_escaped(path.name)}{PARTIAL}*"):
        try:
            with _locked(partial):
                if partial.is_dir():
                    shutil.rmtree(partial)
                else:
                    partial.unlink()
        except OSError:
            continue  # locked by its writer, or already gone


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


@contextmanager
def _as_checkpoint_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{path} could not be written ({error.strerror or error}); nothing unfinished was left "
            "under that name: free some space or choose another place, and write it again"
        ) from error


def _partial_name(path: Path) -> Path:
    return path.with_name(f"{path.name}{PARTIAL}{secrets.token_hex(4)}")


def _escaped(name: str) -> str:
    """``name`` as a pattern that matches itself alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
