"""Compiles the C++ of this folder once for a machine, and loads it."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

_SOURCES = ("decode.cpp", "attention.h", "dot.h", "model.h", "route.h", "team.h")
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
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
    path = _folder() / f"decode-{_digest(compiler)}.so"
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
    source = Path(__file__).with_name(_SOURCES[0])
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        fresh = Path(folder) / path.name
        command = [compiler, *_FLAGS, "-w", str(source), "-o", str(fresh)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)
        fresh.replace(path)


def _folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "moesaic" / "native"


def _digest(compiler: str) -> str:
    told = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, check=False, timeout=_SECONDS
    ).stdout
    sources = [Path(__file__).with_name(name).read_bytes() for name in _SOURCES]
    parts = [*sources, told.encode(), " ".join(_FLAGS).encode(), _processor().encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _processor() -> str:
    """What the compiler's ``native`` stands for on this machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
