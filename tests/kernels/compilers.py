"""A process whose compiled functions are made with other flags."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_SECONDS = 1800


def compiler() -> str:
    """GCC's, where the flags are known."""
    found = shutil.which("g++")
    if sys.platform != "linux" or found is None:
        pytest.skip("the flags are GCC's, on Linux, and there is no g++ here")
    return found


def compiled_with(flags: str, folder: Path, linked: str = "") -> dict[str, str]:
    """The environment of a process whose library is made with more flags, and kept in a folder.

    The compiler that it finds first is a script that adds them.

    Args:
        flags: the last ones count.
        folder: becomes the home of the process.
        linked: what is compiled into the library as well.
    """
    script = folder / "bin" / "c++"
    script.parent.mkdir()
    script.write_text(
        "#!/bin/sh\nunset LD_PRELOAD\n"
        f'case " $* " in *" -shared "*) set -- "$@" {linked};; esac\n'
        f'exec "{compiler()}" "$@" {flags}\n'
    )
    script.chmod(0o755)
    path = f"{script.parent}:{os.environ['PATH']}"
    return {**os.environ, "HOME": str(folder), "PATH": path, "OMP_NUM_THREADS": "1"}


def run(environment: dict[str, str], *arguments: str) -> tuple[int, str]:
    """How Python ended in the project's folder, and what it said."""
    ended = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=_SECONDS,
    )
    return ended.returncode, ended.stdout + ended.stderr


def run_tests(environment: dict[str, str], *files: str) -> None:
    """Run some tests there; none may be skipped because nothing was compiled."""
    select = ("-q", "-rs", "-p", "no:cacheprovider", "-m", "not slow and not gpu")
    code, told = run(environment, "-m", "pytest", *select, *files)
    assert code == 0, told[-10_000:]
    assert "Sanitizer" not in told
    assert " passed" in told
    assert "not compiled" not in told
