"""Landlock: Linux's rules for which files a process may touch, which the process cannot lift."""

import ctypes
import os
import struct
from collections.abc import Iterable

NEEDED_ABI = 3
"""The first version that knows truncation, by which a file can be emptied without writing to it."""

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
"""System calls, numbered alike on every machine."""
_ASK_VERSION = 1
_PATH_BENEATH = 1

_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_FILE, _MAKE_FILE, _TRUNCATE = 1 << 5, 1 << 8, 1 << 14
_READ = _READ_FILE | _READ_DIR
_OWN = _READ | _WRITE_FILE | _REMOVE_FILE | _MAKE_FILE | _TRUNCATE
"""Of folders, links and devices none can be made: what is to be removed afterwards is flat."""
_OF_FILES = _WRITE_FILE | _READ_FILE | _TRUNCATE
"""The rights that mean something for a single file."""


def supported_abi() -> int:
    """The version of Landlock; 0 where there is none."""
    try:
        return max(0, _call(_CREATE_RULESET, None, 0, _ASK_VERSION))
    except OSError:
        return 0


def restrict_files(own: str, readable: Iterable[str]) -> bool:
    """Allow writing in ``own`` and reading in ``readable`` alone; False without Landlock.

    Args:
        own: the process's folder.
        readable: files and folders; those that do not exist are passed over.
    """
    abi = supported_abi()
    if abi < NEEDED_ABI:
        return False
    attributes = _attributes(abi)
    ruleset = _call(_CREATE_RULESET, attributes, len(attributes), 0)
    _allow(ruleset, own, _OWN)
    _allow(ruleset, os.devnull, _READ_FILE | _WRITE_FILE)
    for path in readable:
        if os.path.exists(path):
            _allow(ruleset, path, _READ)
    _call(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    return True


def _attributes(abi: int) -> bytes:
    """``struct landlock_ruleset_attr``: every right this version knows needs a rule from now on."""
    files = (1 << (16 if abi >= 5 else 15)) - 1
    network, signals = 0b11, 0b11
    if abi >= 6:
        return struct.pack("QQQ", files, network, signals)
    return struct.pack("QQ", files, network) if abi >= 4 else struct.pack("Q", files)


def _allow(ruleset: int, path: str, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rights = rights if os.path.isdir(path) else rights & _OF_FILES
        rule = struct.pack("=Qi", rights, place)
        _call(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
    finally:
        os.close(place)


def _call(number: int, *values: int | bytes | None) -> int:
    given = [ctypes.c_long(value) if isinstance(value, int) else value for value in values]
    result = ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *given)
    if result < 0:
        raise OSError(ctypes.get_errno(), "landlock")
    return result
