"""`run_code`: a program that a model wrote, run in a limited child process.

The child is a fresh interpreter with the standard library alone, in an empty folder of its own,
without this process's environment or files. It is bounded in time, memory, output and files; on
Linux it is kept by seccomp from network, new processes and other processes, and by Landlock from
all files but its own and Python's library. Where the system has no such guards, Python's audit
hooks stand in for them, which a program made for it gets around; `isolation` tells what is in
force.

This is a limited child process, not a prison: do not run a model you do not trust on a machine you
care for. What is not guaranteed: a fault in the system's kernel, what can be read from the time
things take, the names and sizes of other files, and the verdict on a program that was written to
deceive these tests, for example by values that are equal to everything.
"""

import contextlib
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import moesaic
from moesaic.errors import ConfigError

_ROOT = str(Path(moesaic.__file__).parents[1])
_START = (
    f"import sys; sys.path.insert(0, {_ROOT!r}); from moesaic.eval.child.run import main; "
    "del sys.path[0]; main()"
)
_FLAGS = ("-s", "-P", "-S", "-B", "-X", "utf8")
"""Nothing of the user's, of the folder or of installed packages is imported, nothing is cached."""
_ENVIRONMENT = {"PYTHONHASHSEED": "0"}
"""The same program has the same sets in the same order."""
_TOKEN_BYTES = 16
_TICK_S = 0.05
_MOST_SAID = 1 << 16
_MOST_SHOWN = 4000


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use."""

    seconds: float = 30.0
    """By the clock, the start of the interpreter included."""
    cpu_seconds: int = 10
    """Of computing. Others allow 3 seconds by the clock, which MBPP's slowest reference program
    nearly takes where nothing else runs."""
    memory_bytes: int = 1 << 30
    """Address space."""
    file_bytes: int = 1 << 24
    """Size of a file, and of what is printed."""
    folder_bytes: int = 1 << 26
    """Size of all files together; looked at every few hundredths of a second."""
    open_files: int = 64


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a program."""

    passed: bool
    """Whether it ran to its end and all its tests held."""
    reason: str
    """Why not; empty if it passed."""
    output: str
    """The end of what it printed."""
    isolation: dict[str, str]
    """What guarded the ``calls`` of the system, the ``files`` and the ``memory``."""
    seconds: float


def run_code(
    program: str, tests: str = "", limits: Limits = Limits(), kernel: bool = True
) -> Outcome:
    """Run a program, and then tests in the names it has defined.

    Args:
        program: Python source.
        tests: Python source that raises where the program is wrong; it runs after the program, in
            its names.
        limits: what both may use together.
        kernel: whether the system's guards are used where it has them; without, only Python's.

    Raises:
        ConfigError: if this machine cannot run code in a limited process.
    """
    if os.name != "posix":
        raise ConfigError(
            "generated code runs in a limited process, for which this system has no limits; "
            "use Linux or macOS, or leave out the tasks that run code"
        )
    started = time.monotonic()
    order = {"program": program, "tests": tests, "limits": asdict(limits), "kernel": kernel}
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as output,
    ):
        token, told, ended = _run_child(order, limits, Path(folder), output)
        size = output.seek(0, os.SEEK_END)
        output.seek(max(0, size - _MOST_SHOWN))
        shown = output.read().decode(errors="replace")
    isolation, mistake = _read_reports(told, token, shown)
    return Outcome(
        passed=mistake is None,
        reason="" if mistake is None else ended or mistake,
        output=shown,
        isolation=isolation,
        seconds=time.monotonic() - started,
    )


def isolation() -> dict[str, str]:
    """What guards a program on this machine: its ``calls``, its ``files`` and its ``memory``.

    Raises:
        ConfigError: if this machine cannot run code in a limited process.
    """
    return run_code("").isolation


def _run_child(
    order: dict[str, object], limits: Limits, folder: Path, output: IO[bytes]
) -> tuple[bytes, bytes, str]:
    """The token, what the child told, and why it was ended or how it did so; empty for itself."""
    token = secrets.token_bytes(_TOKEN_BYTES)
    (orders, to_child), (from_child, reports) = os.pipe(), os.pipe()
    with open(to_child, "wb") as ordering, open(from_child, "rb", buffering=0) as telling:
        child = _start(orders, reports, folder, output)
        try:
            _send(ordering, {**order, "token_bytes": _TOKEN_BYTES}, token)
            told, stopped = _listen(telling, folder, limits)
        finally:
            _end(child)
    return token, told, stopped or _tell_end(child.returncode)


def _start(orders: int, reports: int, folder: Path, output: IO[bytes]) -> subprocess.Popen[bytes]:
    """The child, with its ends of the two pipes and nothing else of this process."""
    try:
        return subprocess.Popen(
            [sys.executable, *_FLAGS, "-c", _START, str(orders), str(reports)],
            pass_fds=(orders, reports),
            cwd=folder,
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    finally:
        os.close(orders)
        os.close(reports)


def _send(ordering: IO[bytes], order: dict[str, object], token: bytes) -> None:
    data = json.dumps(order).encode()
    with contextlib.suppress(BrokenPipeError), ordering:
        ordering.write(len(data).to_bytes(8) + data + token)


def _listen(telling: IO[bytes], folder: Path, limits: Limits) -> tuple[bytes, str]:
    """What the child says until it ends, and why it has to be ended; empty if it has not."""
    told, deadline = b"", time.monotonic() + limits.seconds
    with selectors.DefaultSelector() as selector:
        selector.register(telling, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if _bytes_in(folder) > limits.folder_bytes:
                return told, f"wrote more than {limits.folder_bytes} bytes"
            if not selector.select(min(left, _TICK_S)):
                continue
            piece = telling.read(_MOST_SAID)
            told += piece
            if not piece or len(told) > _MOST_SAID:
                return told, ""
    return told, f"took longer than {limits.seconds:g} seconds"


def _bytes_in(folder: Path) -> int:
    """Bytes of the files in a folder, a block for an empty one."""
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # it may have gone
                total += max(4096, entry.stat(follow_symlinks=False).st_size)
    return total


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child and whatever it has started; one that is ending keeps its own status."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _tell_end(status: int) -> str:
    return "" if status >= 0 else f"ended by signal {-status} ({signal.strsignal(-status)})"


def _read_reports(told: bytes, token: bytes, shown: str) -> tuple[dict[str, str], str | None]:
    """What guards the child, and what was wrong with the program; None if nothing was."""
    first, newline, rest = told.partition(b"\n")
    if not newline:
        raise ConfigError(
            "generated code cannot be run in a limited process on this machine "
            f"({shown.strip() or 'the process did not start'}); leave out the tasks that run code"
        )
    if secrets.compare_digest(rest, token):
        return json.loads(first), None
    return json.loads(first), rest.decode(errors="replace")[
        :_MOST_SHOWN
    ] or "ended before its tests"
