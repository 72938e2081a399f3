"""Keep the memory that a step frees for the next one.

The C library gives large blocks back to the system as soon as they are freed. A step on a CPU makes
and frees hundreds of them, and the system maps and clears each anew: on two cores of an AMD EPYC
that took a tenth to a third of the time of a training step, and up to a quarter of a prompt's (see
docs/decisions/0009).
"""

import ctypes
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Names of settings, from malloc.h of the GNU C library."""
_MOST = 2**31 - 1
_PAD = 2**28


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, where the next step will need as much again.

    For a program, not for a library: it holds for the whole process and for good.

    Returns:
        Whether the C library can do that; only GNU's does.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _MOST), (_TOP_PAD, _PAD))
    return all([mallopt(name, value) == 1 for name, value in settings])
