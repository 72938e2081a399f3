"""The compiled functions as the compiler's checkers see them: memory, undefined behaviour, races.

Their tests run once more in a process of their own, with a library made for the checker; what reads
beyond an allocation or does not wait for another thread ends it, with a report. `make sanitize`.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KERNELS = [f"tests/kernels/test_{name}.py" for name in ("products", "panels", "rows", "rows_sizes")]
INFER = [f"tests/infer/test_{name}.py" for name in ("native", "native_sizes", "stored", "offload")]
_SECONDS = 1800


@dataclass(frozen=True)
class Checker:
    """One of the compiler's."""

    flags: str
    library: str
    settings: dict[str, str]
    tests: list[str]
    beside: str = ""
    """What is compiled into the library as well."""
    names: str = ""
    """What it calls the mistake of `_WRONG`."""

    def environment(self, folder: Path) -> dict[str, str]:
        """Of a process whose library is compiled for it, and kept in a folder.

        The compiler that is found first adds the flags. The checker's own library has to be loaded
        before any other.
        """
        compiler = shutil.which("g++")
        if sys.platform != "linux" or compiler is None:
            pytest.skip("the checkers are GCC's, on Linux, and there is no g++ here")
        loaded = [_library(compiler, name) for name in (self.library, "libstdc++.so")]
        (folder / "bin").mkdir()
        wrapper = folder / "bin" / "c++"
        wrapper.write_text(
            "#!/bin/sh\nunset LD_PRELOAD\n"
            f'case " $* " in *" -shared "*) set -- "$@" {self.beside};; esac\n'
            f'exec "{compiler}" "$@" -O1 -g1 -fno-omit-frame-pointer {self.flags}\n'
        )
        wrapper.chmod(0o755)
        return {
            **os.environ,
            **self.settings,
            "HOME": str(folder),
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "LD_PRELOAD": " ".join(loaded),
            "OMP_NUM_THREADS": "1",
        }


def _library(compiler: str, name: str) -> str:
    """Where a library of the compiler lies."""
    told = subprocess.run(
        [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(told).is_absolute():
        pytest.skip(f"{compiler} has no {name}; install it")
    return str(Path(told).resolve())


ADDRESSES = Checker(
    "-fsanitize=address,undefined -fno-sanitize-recover=undefined",
    "libasan.so",
    {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
    [*KERNELS, *INFER],
    names="heap-buffer-overflow",
)
RACES = Checker(
    "-fsanitize=thread",
    "libtsan.so",
    {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1 halt_on_error=1"},
    # Not those of the cache of experts: threads of Python fill it, whose locks are not seen.
    [*KERNELS, *INFER[:2]],
    f'"{HERE / "openmp.cpp"}" -std=c++17 -fPIC',
    names="data race",
)
Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module", params=[ADDRESSES, RACES], ids=["addresses", "races"])
def checked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Checker, Run]:
    """A checker, and ``run(*arguments)``: how Python ended under it, and what it said."""
    checker: Checker = request.param
    environment = checker.environment(tmp_path_factory.mktemp("checked"))

    def run(*arguments: str) -> tuple[int, str]:
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

    code, told = run("-c", "")
    if code:
        pytest.skip(f"no process begins under {checker.library} here: {told[:200]}")
    return checker, run


def test_no_checker_finds_anything(checked: tuple[Checker, Run]):
    checker, run = checked
    select = ("-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu")
    code, told = run("-m", "pytest", *select, *checker.tests)
    assert code == 0, told[-10_000:]
    assert "Sanitizer" not in told
    assert " passed" in told
    assert "skipped" not in told  # it was compiled


_WRONG = """
import sys
from threading import Thread
import torch
sys.path[:0] = ["tests", "."]
from kernels.test_products import multiplied, random_rows
generator = torch.Generator().manual_seed(0)
rows, stream = random_rows(64, 4096, "float32", generator), torch.ones(64, 4096)
matrix = rows.matrix()
matrix.rows += 1
multiply = lambda: [multiplied(matrix, stream, torch.ones(4096), 1) for _ in range(20)]
several = [Thread(target=multiply) for _ in range(2)]
for one in several:
    one.start()
for one in several:
    one.join()
"""


def test_the_checkers_see_a_row_too_many_and_two_that_write_to_one_place(
    checked: tuple[Checker, Run],
):
    checker, run = checked
    code, told = run("-c", _WRONG)
    assert code != 0
    assert checker.names in told, told[-5_000:]
