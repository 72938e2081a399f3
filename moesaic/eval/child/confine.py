"""What a process gives up before it runs a program it does not trust."""

import contextlib
import ctypes
import os
import resource
import struct
import sys
import sysconfig
from collections.abc import Mapping
from itertools import chain

from moesaic.eval.child.audit import refuse_python_calls, restrict_python_files
from moesaic.eval.child.landlock import restrict_files, supported_abi
from moesaic.eval.child.seccomp import no_new_privileges, refuse_calls

AUDIT = "audit hook"
_CAPABILITIES_3 = 0x20080522
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
_DEVICES = ("/dev/urandom", "/dev/zero")


def confine(limits: Mapping[str, int], kernel: bool = True) -> dict[str, str]:
    """Give up everything but computing, reading Python's library, and the current folder.

    Args:
        limits: by the names of `moesaic.eval.sandbox.Limits`, in bytes, seconds and numbers.
        kernel: whether the system's guards are used where it has them; without, only Python's.

    Returns:
        What keeps the program from the network and other processes, from files, and from memory.
    """
    own, readable = os.getcwd(), _readable()
    isolation = {"memory": _limit_resources(limits), "calls": AUDIT, "files": AUDIT}
    if kernel and sys.platform == "linux":
        _drop_capabilities()
        no_new_privileges()
        if restrict_files(own, readable):
            isolation["files"] = f"Landlock {supported_abi()}"
        if refuse_calls():
            isolation["calls"] = "seccomp"
    if isolation["files"] == AUDIT:
        restrict_python_files(own, readable)
    if isolation["calls"] == AUDIT:
        _limit(resource.RLIMIT_NPROC, 0)
        refuse_python_calls()
    return isolation


def _limit_resources(limits: Mapping[str, int]) -> str:
    """Set what the system counts; returns whether memory is among it."""
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_CPU, limits["cpu_seconds"], spare=1)  # a signal of its own comes first
    _limit(resource.RLIMIT_FSIZE, limits["file_bytes"])
    _limit(resource.RLIMIT_NOFILE, limits["open_files"])
    is_limited = _limit(resource.RLIMIT_AS, limits["memory_bytes"])
    return "limited" if is_limited and sys.platform == "linux" else "not limited"


def _limit(kind: int, most: int, spare: int = 0) -> bool:
    """Lower a limit for good; False where the system does not let itself be told."""
    with contextlib.suppress(OSError, ValueError):
        _, hard = resource.getrlimit(kind)
        hard = most + spare if hard == resource.RLIM_INFINITY else min(most + spare, hard)
        resource.setrlimit(kind, (min(most, hard), hard))
        return True
    return False


def _drop_capabilities() -> None:
    """What a superuser may do more than others: nothing from here on."""
    header = struct.pack("Ii", _CAPABILITIES_3, 0)
    if ctypes.CDLL(None, use_errno=True).capset(header, bytes(24)) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _readable() -> list[str]:
    """Python's own library, the system's libraries that parts of it need, and random bytes."""
    names = ("stdlib", "platstdlib")
    own = [sysconfig.get_path(name) for name in names]
    return [
        *dict.fromkeys(chain(own, (os.path.join(sys.base_prefix, "lib"),), _LIBRARIES, _DEVICES))
    ]
