"""The compiled functions are right on processors that have fewer instructions, too."""

from pathlib import Path

import pytest
from kernels.compilers import compiled_with, run_tests

PROCESSORS = {
    "-march=x86-64": set[str](),
    "-march=x86-64-v3": {"avx2", "fma", "bmi2"},
    "-march=x86-64-v3 -mavxvnni": {"avx2", "fma", "bmi2", "avx_vnni"},
    "-march=x86-64-v4": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"},
    # As Intel's processors of 2019 to 2021: without bfloat16.
    "-march=x86-64-v4 -mavx512vnni": {"avx512bw", "avx512dq", "avx512vl", "avx512_vnni"},
}
TESTS = (
    *(
        f"tests/kernels/test_{name}.py"
        for name in ("expand", "lossless", "products", "rows", "rows_sizes")
    ),
    *(f"tests/infer/test_{name}.py" for name in ("native", "native_sizes", "stored", "held")),
)


def instructions() -> set[str]:
    """What this processor has."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


@pytest.mark.slow
@pytest.mark.parametrize("processor", PROCESSORS)
def test_other_processors_compute_the_same(processor: str, tmp_path: Path):
    here = instructions()
    if "sse2" not in here or PROCESSORS[processor] - here:
        pytest.skip(f"this processor has no {', '.join(PROCESSORS[processor] - here) or 'SSE2'}")
    run_tests(compiled_with(processor, tmp_path), *TESTS)
