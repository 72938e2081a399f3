"""Rows of codes are made floats in one sweep, to the bits that `Rows.floats` gives."""

from collections.abc import Callable, Iterator
from typing import get_args

import pytest
import torch
from kernels.guarded import Side, guarded, guarded_rows
from torch import Tensor

from moesaic.kernels.native import expand as module
from moesaic.kernels.native.build import library
from moesaic.kernels.native.expand import expand
from moesaic.kernels.native.pack import Kind, Rows

SCALED: list[Kind] = ["int8", "int4", "float8"]
KINDS: list[Kind] = [*SCALED]
if not isinstance(library(), str):
    KINDS.append("lossless")
DTYPES = [torch.float32, torch.bfloat16]
SIZES = [(1, 1), (3, 31), (5, 33), (2, 64), (4, 127), (3, 130), (7, 320), (0, 64), (40, 201)]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads compute, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def random_rows(n: int, width: int, kind: Kind, generator: torch.Generator) -> Rows:
    """Any codes, with scales of all sizes; or floats, some of them of another size."""
    rows = Rows.empty(n, width, kind)
    if kind == "lossless":
        weight = torch.randn(n, width, generator=generator)
        rows.put_(weight.scatter(1, torch.randint(0, width, (n, 3), generator=generator), 1e30))
        return rows
    rows.values.random_(0, 256, generator=generator)
    assert rows.scales is not None
    scales = torch.randn(rows.scales.shape, generator=generator)
    rows.scales.copy_(scales * 10.0 ** torch.randint(-6, 7, scales.shape, generator=generator))
    return rows


def assert_same(got: Tensor, want: Tensor) -> None:
    """To the bit, but for those of what is no number."""
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.nan_to_num(), want.nan_to_num())


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "width"), SIZES)
def test_bits_are_those_of_the_codes_times_their_scales(
    n: int, width: int, kind: Kind, dtype: torch.dtype, generator: torch.Generator
):
    rows = random_rows(n, width, kind, generator)
    out = torch.full((n, width), float("nan"), dtype=dtype)
    assert expand(rows, out) is out
    assert_same(out, rows.floats().to(dtype))


@pytest.mark.parametrize("kind", sorted({*get_args(Kind)} - {"lossless"} | {*KINDS}))
def test_every_kind_of_rows_has_values(kind: Kind, generator: torch.Generator):
    weight = torch.randn(6, 70, generator=generator)
    rows = Rows.empty(6, 70, kind)
    if kind == "float8":
        rows = random_rows(6, 70, kind, generator)
    else:
        rows.put_(weight)
    for dtype in DTYPES:
        assert_same(expand(rows, torch.empty(6, 70, dtype=dtype)), rows.floats().to(dtype))


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("exponent", [-149, -140, -133, -127, -126, -118, -101, -99, 120, 127])
def test_the_smallest_and_the_largest_numbers_are_rounded_like_any(
    kind: Kind, exponent: int, generator: torch.Generator
):
    rows = random_rows(4, 256, kind, generator)
    assert rows.scales is not None
    rows.scales.fill_(1.3125).mul_(2.0**exponent)
    for dtype in DTYPES:
        assert_same(expand(rows, torch.empty(4, 256, dtype=dtype)), rows.floats().to(dtype))


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("scale", [0.0, float("inf"), float("nan")])
def test_scales_that_are_no_numbers_stay_none(kind: Kind, scale: float, generator: torch.Generator):
    rows = random_rows(2, 100, kind, generator)
    assert rows.scales is not None
    rows.scales.fill_(scale)
    for dtype in DTYPES:
        assert_same(expand(rows, torch.empty(2, 100, dtype=dtype)), rows.floats().to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize(("n", "width"), [(1, 1), (3, 33), (2, 100), (2, 128)])
def test_nothing_beside_rows_is_read_or_written(
    n: int, width: int, side: Side, kind: Kind, dtype: torch.dtype, generator: torch.Generator
):
    rows = random_rows(n, width, kind, generator)
    out = expand(guarded_rows(rows, side), guarded(torch.zeros(n, width, dtype=dtype), side))
    assert_same(out, rows.floats().to(dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_rows_on_any_number_of_threads(
    kind: Kind, generator: torch.Generator, threads: Callable[[int], None]
):
    rows = random_rows(9, 200, kind, generator)
    want = rows.floats().bfloat16()
    for n in (1, 3):
        threads(n)
        assert_same(expand(rows.part(2, 8), torch.empty(6, 200, dtype=torch.bfloat16)), want[2:8])


@pytest.mark.skipif(isinstance(library(), str), reason=f"not compiled: {library()}")
@pytest.mark.parametrize("kind", KINDS)
def test_without_a_compiler_it_is_the_same(
    kind: Kind, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
):
    rows = random_rows(9, 200, kind, generator)
    compiled = expand(rows, torch.empty(9, 200, dtype=torch.bfloat16))
    monkeypatch.setattr(module, "library", lambda: "there is none")
    assert_same(expand(rows, torch.empty(9, 200, dtype=torch.bfloat16)), compiled)
