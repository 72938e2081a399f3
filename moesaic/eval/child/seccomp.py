"""A filter of system calls: no network, no new process, no hold on another process.

Linux keeps it for the rest of the process's life, whatever the program in it does.
"""

import ctypes
import errno
import platform
import struct

_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_MODE_FILTER = 2

_LOAD, _EQUAL, _AT_LEAST, _HAS_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
"""Instructions of classic BPF: load a word of the call, three jumps, return a verdict."""
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
"""Where they stand in ``struct seccomp_data``."""
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
_CLONE_THREAD = 0x10000
_NEWEST = 451
"""Calls from this number on are younger than the lists below; they do not exist here."""

_AUDIT_NAMES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_REFUSED = {
    "x86_64": {
        "network": (41, 425),  # socket io_uring_setup
        "new processes": (57, 58, 59, 322, 272, 308),  # fork vfork execve execveat unshare setns
        # kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal pidfd_open
        # pidfd_getfd ptrace process_vm_readv process_vm_writev process_madvise kcmp
        "signals and tracing": (62, 200, 234, 129, 297, 424, 434, 438, 101, 310, 311, 440, 312),
        # prlimit64 setrlimit setpriority sched_setaffinity sched_setscheduler sched_setparam
        # sched_setattr ioprio_set migrate_pages move_pages
        "limits and priorities": (302, 160, 141, 203, 144, 142, 314, 251, 256, 279),
        # truncate chmod fchmod fchmodat chown fchown lchown fchownat utime utimes futimesat
        # utimensat setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr
        "attributes of files": (
            *(76, 90, 91, 268, 92, 93, 94, 260, 132, 235, 261, 280, 188, 189, 190, 197, 198, 199),
        ),
        "memory outside the process": (29, 68, 64, 240, 319),  # shmget msgget semget mq_open memfd
        "the kernel": (321, 298, 323, 248, 249, 250),  # bpf perf userfaultfd add_key request keyctl
    },
    "aarch64": {
        "network": (198, 425),
        "new processes": (221, 281, 97, 268),
        "signals and tracing": (129, 130, 131, 138, 240, 424, 434, 438, 117, 270, 271, 440, 272),
        "limits and priorities": (261, 164, 140, 122, 119, 118, 274, 30, 238, 239),
        "attributes of files": (45, 52, 53, 55, 54, 88, 5, 6, 7, 14, 15, 16),
        "memory outside the process": (194, 186, 190, 180, 279),
        "the kernel": (280, 241, 282, 217, 218, 219),
    },
}
"""Numbers of the calls that fail with EPERM, by the machine; those that need a capability fail
without being listed."""
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435


def no_new_privileges() -> None:
    """Give up gaining rights by running a program: what both guards ask for first.

    Raises:
        OSError: if the system knows no such promise.
    """
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def refuse_calls() -> bool:
    """Put the filter in force; False where the system or the machine has none."""
    machine = platform.machine()
    if machine not in _REFUSED:
        return False
    code = _program(machine)
    filter_ = struct.pack("HxxxxxxP", len(code) // 8, _address(code))
    try:
        _prctl(_PR_SET_SECCOMP, _MODE_FILTER, _address(filter_))
    except OSError:
        return False
    return True


def _program(machine: str) -> bytes:
    """The filter: instructions of eight bytes each."""
    rules = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _AUDIT_NAMES[machine]),
        (_RETURN, 0, 0, _KILL),  # a call in another machine's numbering
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _NEWEST),
        (_RETURN, 0, 0, _FAIL | errno.ENOSYS),
        (_EQUAL, 0, 1, _CLONE3),  # its flags are out of sight; the C library then uses clone
        (_RETURN, 0, 0, _FAIL | errno.ENOSYS),
    ]
    for number in sum(_REFUSED[machine].values(), ()):
        rules += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _FAIL | errno.EPERM)]
    rules += [
        (_EQUAL, 0, 3, _CLONE[machine]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_HAS_BIT, 1, 0, _CLONE_THREAD),  # a thread is bounded with its process
        (_RETURN, 0, 0, _FAIL | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *rule) for rule in rules)


def _address(data: bytes) -> int:
    """Where the bytes lie, for as long as they live."""
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0


def _prctl(option: int, *values: int) -> None:
    given = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    if ctypes.CDLL(None, use_errno=True).prctl(option, *given) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
