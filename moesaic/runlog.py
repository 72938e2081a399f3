"""The record of a run: one JSON object per line, appended and flushed as things happen.

The first line says what ran: configuration, seed, versions, hardware. The lines after it say what
happened at which step. A process killed while writing leaves a torn last line, which is ignored.
"""

import json
import math
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from moesaic import __version__
from moesaic.errors import DataError, TrainingError

_PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "pydantic")
_NOT_NUMBERS = ("nan", "inf", "-inf")

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What a run's record holds."""

    start: Line
    """What was asked for and where it ran: config, seed, versions, hardware."""
    resumed: tuple[Line, ...]
    """The same for every time the run was taken up again, with the step it continued from."""
    lines: tuple[Line, ...]
    """Everything that happened, oldest first; each has ``kind``, ``step`` and ``time_s``."""

    def of(self, kind: str) -> list[Line]:
        """The lines of one kind, oldest first."""
        return [line for line in self.lines if line["kind"] == kind]


def describe_run(config: Mapping[str, Any], seed: int, gpu: str | None = None) -> Line:
    """The first line of a record.

    Args:
        config: every setting of the run, as JSON values.
        seed: what all its random generators were made from.
        gpu: the accelerator's name; None where there is none.
    """
    return {"config": dict(config), "seed": seed, "versions": versions(), "hardware": hardware(gpu)}


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of those that results depend on."""
    found = {"python": platform.python_version(), "moesaic": __version__}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def hardware(gpu: str | None = None) -> dict[str, Any]:
    """The machine: processor, cores this process may use, memory in bytes, accelerator."""
    return {
        "cpu": _processor(),
        "cores": _usable_cores(),
        "memory_bytes": _memory_bytes(),
        "system": platform.platform(),
        "gpu": gpu,
    }


class RunLog:
    """Writes a run's record, one flushed line at a time. A context manager."""

    def __init__(
        self, path: Path | str, start: Mapping[str, Any], resume_at_step: int | None = None
    ):
        """Begin a record, or go on with one.

        Args:
            path: the record; its folder is made.
            start: what `describe_run` returns.
            resume_at_step: the last step that was saved; what the record says of later steps is
                removed, since they will happen again. None begins a new record.

        Raises:
            TrainingError: if a new record is asked for where there is one.
            DataError: if the record to go on with is damaged.
        """
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        written = _read_lines(self.path) if self.path.exists() else []
        if written and resume_at_step is None:
            raise TrainingError(
                f"{self.path} already holds a run; resume that run, or choose another folder"
            )
        kept = [line for line in written if line.get("step", 0) <= (resume_at_step or 0)]
        _replace(self.path, kept)
        self._file = self.path.open("a", encoding="utf-8")
        if kept:
            self._append({"kind": "resume", "step": resume_at_step, **start})
        else:
            self._append({"kind": "start", **start})

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one line.

        Args:
            kind: what happened, as ``"step"`` or ``"evaluation"``.
            step: the optimiser step after which it happened.
            values: JSON values under their names; a float may be infinite or not a number.
        """
        self._append({"kind": kind, "step": step, **values})

    def close(self) -> None:
        """Close the file; every line is already in it."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _append(self, line: Line) -> None:
        self._file.write(_encode({**line, "time_s": round(time.time(), 3)}))
        self._file.flush()


def read_run(path: Path | str) -> RunRecord:
    """The record in a file; a torn last line is left out.

    Raises:
        DataError: if there is no record in it, or a line before the last is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist; give the record of a run")
    lines = _read_lines(path)
    if not lines:
        raise DataError(f"{path} holds no complete line; the run stopped before it began")
    return RunRecord(
        start=lines[0],
        resumed=tuple(line for line in lines if line["kind"] == "resume"),
        lines=tuple(line for line in lines[1:] if line["kind"] != "resume"),
    )


def _read_lines(path: Path) -> list[Line]:
    """Every complete line, the first of which must say what ran."""
    *complete, _torn = path.read_bytes().split(b"\n")
    lines: list[Line] = []
    for number, text in enumerate(complete, start=1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise DataError(
                f"{path}: line {number} is not JSON ({error}); restore the file or remove it"
            ) from None
        if not isinstance(line, dict) or "kind" not in line:
            raise DataError(f"{path}: line {number} has no kind; this is not the record of a run")
        lines.append({name: _decode(value) for name, value in line.items()})
    if lines and lines[0]["kind"] != "start":
        raise DataError(
            f"{path}: the first line is of kind {lines[0]['kind']!r}, not 'start'; "
            "this is not the record of a run from its beginning"
        )
    return lines


def _replace(path: Path, lines: list[Line]) -> None:
    """Leave exactly these lines in the file, whatever happens meanwhile."""
    fresh = path.with_name(path.name + ".new")
    with fresh.open("w", encoding="utf-8") as file:
        file.writelines(_encode(line) for line in lines)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _encode(line: Line) -> str:
    return json.dumps(_encodable(line), ensure_ascii=False, allow_nan=False) + "\n"


def _encodable(value: Any) -> Any:
    """The same value with floats that JSON does not have written as words."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {name: _encodable(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(part) for part in value]
    return value


def _decode(value: Any) -> Any:
    return float(value) if value in _NOT_NUMBERS else value


def peak_bytes() -> int:
    """Most memory of this process so far.

    Linux counts in ``VmHWM`` what the process itself held; the peak that POSIX reports begins with
    that of the process it was started from.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    return status_bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def status_bytes(name: str) -> int | None:
    """A line of this process's ``/proc`` status, such as ``VmRSS``; None where there is no such."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _processor() -> str:
    """The processor's name as its maker prints it, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
