"""Compiles the C++ of this folder once for a machine, and loads it."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from time import time

import torch

_COMPILED = ("decode.cpp", "expand.cpp", "lossless.cpp", "panels.cpp", "rows.cpp")
_HEADERS = (
    "attention.h",
    "dot.h",
    "dot_floats.h",
    "dot_lossless.h",
    "lossless.h",
    "matrix.h",
    "model.h",
    "route.h",
    "team.h",
)
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-w",
)
_COMPILERS = ("c++", "g++", "clang++")
_SECONDS = 300
_UNUSED_SECONDS = 30 * 24 * 3600
"""What nothing has loaded for so long is of an earlier version or of a machine that is gone."""
_UNFINISHED = "unfinished-"
_LOG = logging.getLogger(__name__)


@cache
def library() -> ctypes.CDLL | str:
    """The compiled functions, or why there are none; compiled at the first call on a machine.

    What was compiled is kept in the user's cache folder, under a name made from the sources, the
    compiler and the processor: a home that several machines share has one for each. Where nothing
    can be kept, every process compiles for itself. That there are none is logged as a warning, and
    that something is being compiled as information.
    """
    reasons = []
    for compiler in dict.fromkeys(filter(None, map(shutil.which, _COMPILERS))):
        try:
            return _library_of(compiler)
        except (OSError, subprocess.SubprocessError) as error:
            reasons.append(f"{compiler} could not compile it: {_first_error(error)}")
    reason = "; ".join(reasons) or f"no C++ compiler was found (looked for {', '.join(_COMPILERS)})"
    _LOG.warning(
        "nothing is compiled for this processor: %s. All but the setting form works without, but "
        "on a CPU text is written 4 to 10 times slower, and training takes longer; install a C++ "
        "compiler with OpenMP, as with: apt install g++",
        reason,
    )
    return reason


def _first_error(error: Exception) -> str:
    """The line in which a compiler says what is wrong, or what else is known."""
    told = str(getattr(error, "stderr", None) or error).strip().splitlines()
    return next((line for line in told if "error" in line), told[0] if told else "")[:300]


def _library_of(compiler: str) -> ctypes.CDLL:
    """What was kept, or else what is compiled now.

    Raises:
        OSError: if nothing can be written, read or loaded.
        SubprocessError: if it cannot be compiled.
    """
    name, kept = f"{_digest(compiler)}.so", _folder()
    if kept is not None:
        with suppress(OSError):  # there is none, or it is not ours to touch
            os.utime(kept / name)  # before it is loaded, so that nobody removes it now
        with suppress(OSError):  # there is none, or one that is damaged
            return ctypes.CDLL(str(kept / name))
        with suppress(OSError, subprocess.CalledProcessError):  # full, or not to be written
            kept.mkdir(parents=True, exist_ok=True, mode=0o700)
            _remove_old(kept)
            return _compiled(compiler, kept, kept / name)
    return _compiled(compiler, None, None)


def _compiled(compiler: str, parent: Path | None, kept: Path | None) -> ctypes.CDLL:
    """Compile and load, in a folder that is gone afterwards.

    Args:
        compiler: which.
        parent: where to make the folder; None for the system's.
        kept: where the library is moved to, whole: several processes may do so at once.
    """
    _LOG.info("compiling for this processor%s", ", once" if kept else "; it cannot be kept")
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=parent) as folder:
        objects = [f"{folder}/{name}.o" for name in _COMPILED]
        for name, made in zip(_COMPILED, objects, strict=True):
            _run(compiler, *_FLAGS, "-c", str(here / name), "-o", made)
        fresh = Path(folder) / "library.so"
        _run(compiler, "-shared", *objects, _threads(), "-o", str(fresh))
        found = ctypes.CDLL(str(fresh))
        if kept is not None:
            with fresh.open("rb") as file:
                os.fsync(file.fileno())  # so that no other stands under its name after a crash
            fresh.replace(kept)
        return found


def _remove_old(folder: Path) -> None:
    """What processes left that were ended while they compiled, and libraries nothing has used for
    long. A process that has loaded one keeps it, and one that comes back compiles anew."""
    for each in folder.iterdir():
        with suppress(OSError):  # another process was faster
            age = time() - each.stat().st_mtime
            if each.name.startswith(_UNFINISHED) and age > 4 * _SECONDS:
                shutil.rmtree(each, ignore_errors=True)
            elif each.suffix == ".so" and age > _UNUSED_SECONDS:
                each.unlink()


def _run(*command: str) -> str:
    """What a command says."""
    ended = subprocess.run(
        command, check=True, capture_output=True, text=True, errors="replace", timeout=_SECONDS
    )
    return ended.stdout


def _threads() -> str:
    """The library of threads that torch has loaded: with a second one, the threads of both would
    wait for work on the same cores. The compiler's own where torch has another kind."""
    assert torch.get_num_threads()  # it is loaded by now
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    loaded = {line.split(maxsplit=5)[-1] for line in lines if "libgomp" in line}
    return min(loaded, default="-fopenmp")


def _folder() -> Path | None:
    """Where what was compiled is kept; None for a user without a home."""
    try:
        return Path.home() / ".cache" / "moesaic" / "native"
    except RuntimeError:
        return None


def _digest(compiler: str) -> str:
    told = _run(compiler, "--version")
    here = Path(__file__).parent
    sources = [(here / name).read_bytes() for name in (*_COMPILED, *_HEADERS)]
    settings = (told, " ".join(_FLAGS), _threads(), _processor())
    parts = [*sources, *(each.encode() for each in settings)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _processor() -> str:
    """What the compiler's ``native`` stands for on this machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features", "isa"))), "")
