"""The machine under a measurement: its ceilings, its other load, the memory of this process."""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from moesaic.kernels.native import panels
from moesaic.runlog import hardware, peak_bytes, status_bytes

DISTURBED = 0.05
"""Share of the processors used by others above which times are not to be trusted."""
_MATMUL_SIZES = (1024, 2048)
_READ_BYTES = 2**28
_STAT = Path("/proc/stat")


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What the machine can do, measured in the run that is judged by it."""

    float32: float
    """Operations per second of a square float32 matmul, the best of a few sizes, by the framework
    or compiled."""
    bfloat16: float
    """The same in bfloat16."""
    read: float
    """Bytes per second read from memory by one sum."""

    def flops(self, precision: str) -> float:
        """The ceiling for products in this precision; ``mixed`` multiplies in bfloat16."""
        return self.float32 if precision == "float32" else self.bfloat16

    def as_json(self) -> dict[str, float]:
        """In giga operations and giga bytes per second."""
        return {f"{name}_g": round(value / 1e9, 1) for name, value in asdict(self).items()}


def measure_ceiling(generator: torch.Generator) -> Ceiling:
    """Measure matmul in both precisions, and reading."""
    values = torch.rand(_READ_BYTES // 4, generator=generator)
    return Ceiling(
        float32=_matmul_speed(torch.float32, generator),
        bfloat16=_matmul_speed(torch.bfloat16, generator),
        read=_READ_BYTES / typical_seconds(lambda: values.sum()),
    )


def _matmul_speed(dtype: torch.dtype, generator: torch.Generator) -> float:
    speeds = []
    for size in _MATMUL_SIZES:
        left, right = torch.rand(2, size, size, generator=generator).to(dtype)
        out = torch.empty_like(left)
        calls = [partial(torch.mm, left, right, out=out)]
        if panels.serve(left, right):
            calls.append(partial(panels.multiply, left[None], right[None], out[None]))
        speeds += [2 * size**3 / typical_seconds(call) for call in calls]
    return max(speeds)


def typical_seconds(call: Callable[[], Any], repeats: int = 7, at_least_s: float = 0.3) -> float:
    """Median time of one call, over several groups of calls."""
    call()
    once = _timed(call, 1)
    calls = max(1, int(at_least_s / repeats / max(once, 1e-7)))
    return median(_timed(call, calls) for _ in range(repeats))


def _timed(call: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


@dataclass(slots=True)
class Disturbance:
    """How busy other processes kept the processors while something was measured."""

    others: float | None = None
    """Share of all processor time; None where the system does not tell."""


@contextmanager
def watching_others() -> Iterator[Disturbance]:
    """Fill in the disturbance of this block when it ends."""
    seen = Disturbance()
    busy, own, start = _busy_seconds(), _own_seconds(), time.perf_counter()
    yield seen
    if busy is not None:
        wall = (time.perf_counter() - start) * (os.cpu_count() or 1)
        elsewhere = (_busy_seconds() or busy) - busy - (_own_seconds() - own)
        seen.others = round(max(0.0, elsewhere / wall), 3)


def _busy_seconds() -> float | None:
    """Time that all processors together were not idle."""
    if not _STAT.exists():
        return None
    ticks = [int(value) for value in _STAT.read_text().split("\n", 1)[0].split()[1:9]]
    idle, waiting = ticks[3], ticks[4]
    return (sum(ticks) - idle - waiting) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    spent = os.times()
    return spent.user + spent.system


def resident_bytes() -> int:
    """Memory of this process now, or its peak where the system tells no more."""
    return status_bytes("VmRSS") or peak_bytes()


def forget_peak() -> None:
    """Begin a new `peak_bytes`, where the system can: loading a model is not part of using it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def machine_name() -> str:
    """Processor and cores as part of a file's name."""
    found = hardware()
    slug = re.sub(r"[^a-z0-9]+", "-", str(found["cpu"]).lower()).strip("-")
    return f"{slug}-{found['cores']}-cores"
