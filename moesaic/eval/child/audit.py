"""Refusals by the interpreter, where the system itself refuses less.

A program that knows how can get around them; an ordinary one is told no.
"""

import os
import sys
from collections.abc import Iterable
from typing import Any

_CALLS = (
    *("socket.", "subprocess.", "ctypes.", "os.exec", "os.fork", "os.kill", "os.posix_spawn"),
    *("os.spawn", "os.system", "pty.", "resource.", "signal.pthread_kill", "syslog."),
)
"""Beginnings of the events that mean network, processes, or the way around this file."""
_CHANGES = {"os.remove": 1, "os.rename": 2, "os.truncate": 1, "sqlite3.connect": 1}
"""Events that change files, and how many of their first arguments are paths."""
_REFUSED = frozenset(
    {"os.chmod", "os.chown", "os.link", "os.mkdir", "os.removexattr", "os.rmdir", "os.setxattr"}
    | {"os.symlink", "os.utime"}
)
_LISTS = frozenset({"os.listdir", "os.scandir"})
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def refuse_python_calls() -> None:
    """No network, no processes, no foreign functions."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_CALLS):
            raise PermissionError(f"{event} is not allowed here")

    sys.addaudithook(hook)


def restrict_python_files(own: str, readable: Iterable[str]) -> None:
    """Allow writing in ``own`` and reading in ``readable`` alone.

    Args:
        own: the process's folder.
        readable: files and folders.
    """
    may_write = (os.path.realpath(own), os.devnull)
    may_read = (*may_write, *map(os.path.realpath, readable))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not _is_allowed(event, arguments, may_read, may_write):
            raise PermissionError(f"{event} is not allowed here: {arguments[0]!r}")

    sys.addaudithook(hook)


def _is_allowed(
    event: str, arguments: tuple[Any, ...], may_read: tuple[str, ...], may_write: tuple[str, ...]
) -> bool:
    if event == "open":
        return _is_inside(arguments[0], may_write if arguments[2] & _WRITING else may_read)
    if event in _LISTS:
        return _is_inside(arguments[0] or ".", may_read)
    changed = arguments[: _CHANGES.get(event, 0)]
    return event not in _REFUSED and all(_is_inside(path, may_write) for path in changed)


def _is_inside(path: Any, folders: tuple[str, ...]) -> bool:
    """Whether a path leads into one of some folders; an open file is where it was allowed to be."""
    if isinstance(path, int):
        return True
    real = os.path.realpath(os.fsdecode(path))
    return any(real == folder or real.startswith(folder + os.sep) for folder in folders)
