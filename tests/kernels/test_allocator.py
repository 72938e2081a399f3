"""Freed memory that a process keeps: asked in a process of its own, where it holds for good."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from moesaic.kernels.allocator import keep_freed_memory
if {kept}:
    assert keep_freed_memory()
for step in range(30):
    if step == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(12 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(kept: bool) -> int:
    """Pages the system had to clear for ten tensors of 48 MiB, one after the other."""
    code = FAULTS.format(kept=kept)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only GNU's C library can")
def test_memory_that_is_kept_is_not_cleared_again() -> None:
    assert faults(kept=True) < 0.1 * faults(kept=False)
