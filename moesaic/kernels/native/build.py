"""Compiles the C++ of this folder once for a machine, and loads it."""

import ctypes
import hashlib
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

_COMPILED = ("decode.cpp", "panels.cpp", "rows.cpp")
_HEADERS = ("attention.h", "dot.h", "matrix.h", "model.h", "route.h", "team.h")
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


@cache
def library() -> ctypes.CDLL | str:
    """The compiled functions, or why there are none; compiled at the first call on a machine.

    What was compiled is kept in the user's cache folder, under a name made from the sources, the
    compiler and the processor.
    """
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        return f"no C++ compiler was found (looked for {', '.join(_COMPILERS)})"
    path = _folder() / f"{_digest(compiler)}.so"
    try:
        if not path.exists():
            _compile(compiler, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", None) or str(error)
        return f"{compiler} could not compile it: {told.strip()[:500]}"


def _compile(compiler: str, path: Path) -> None:
    """Write the library under another name first: several processes may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        objects = [f"{folder}/{name}.o" for name in _COMPILED]
        for name, made in zip(_COMPILED, objects, strict=True):
            _run(compiler, *_FLAGS, "-c", str(here / name), "-o", made)
        fresh = Path(folder) / path.name
        _run(compiler, "-shared", *objects, _threads(), "-o", str(fresh))
        fresh.replace(path)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)


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


def _folder() -> Path:
    return Path.home() / ".cache" / "moesaic" / "native"


def _digest(compiler: str) -> str:
    told = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, check=False, timeout=_SECONDS
    ).stdout
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
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
