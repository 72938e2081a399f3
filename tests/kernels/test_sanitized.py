"""The compiled functions as the compiler's checkers see them: memory, undefined behaviour, races.

Their tests run once more in a process of their own, with a library made for the checker; what reads
beyond an allocation or does not wait for another thread ends it, with a report. `make sanitize`.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from kernels.compilers import compiled_with, compiler, run, run_tests

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
KERNELS = [
    f"tests/kernels/test_{name}.py"
    for name in ("expand", "lossless", "products", "panels", "rows", "rows_sizes")
]
INFER = [
    f"tests/infer/test_{name}.py"
    for name in ("native", "native_sizes", "native_lifetime", "stored", "held", "offload")
]


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
        """Of a process whose library is made for it; the checker itself is loaded first."""
        loaded = " ".join(_library(name) for name in (self.library, "libstdc++.so"))
        flags = f"-O1 -g1 -fno-omit-frame-pointer {self.flags}"
        made = compiled_with(flags, folder, self.beside)
        return {**made, **self.settings, "LD_PRELOAD": loaded}


def _library(name: str) -> str:
    """Where a library of the compiler lies."""
    command = [compiler(), f"-print-file-name={name}"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(told).is_absolute():
        pytest.skip(f"{command[0]} has no {name}; install it")
    return str(Path(told).resolve())


ADDRESSES = Checker(
    "-fsanitize=address,undefined -fno-sanitize-recover=undefined",
    "libasan.so",
    {
        "ASAN_OPTIONS": "detect_leaks=0 allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    },
    [*KERNELS, *INFER],
    names="heap-buffer-overflow",
)
RACES = Checker(
    "-fsanitize=thread",
    "libtsan.so",
    {
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1 halt_on_error=1 "
        "allocator_may_return_null=1"
    },
    # Not those of the cache of experts: threads of Python fill it, whose locks are not seen.
    [*KERNELS, *INFER[:3]],
    f'"{HERE / "openmp.cpp"}" -std=c++17 -fPIC',
    names="data race",
)
Checked = tuple[Checker, dict[str, str]]


@pytest.fixture(scope="module", params=[ADDRESSES, RACES], ids=["addresses", "races"])
def checked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checked:
    """A checker, and the environment of a process under it."""
    checker: Checker = request.param
    environment = checker.environment(tmp_path_factory.mktemp("checked"))
    code, told = run(environment, "-c", "")
    if code:
        pytest.skip(f"no process begins under {checker.library} here: {told[:200]}")
    return checker, environment


def test_no_checker_finds_anything(checked: Checked):
    checker, environment = checked
    run_tests(environment, *checker.tests)


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


def test_the_checkers_see_a_row_too_many_and_two_that_write_to_one_place(checked: Checked):
    checker, environment = checked
    code, told = run(environment, "-c", _WRONG)
    assert code != 0
    assert checker.names in told, told[-5_000:]
