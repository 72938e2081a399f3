"""Compiled products against float64, and what decides whether they are used."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from moesaic.kernels.matmul import linear, matmul
from moesaic.kernels.native import panels
from moesaic.kernels.native.build import library

_LIBRARY = library()
compiled = pytest.mark.skipif(
    isinstance(_LIBRARY, str) or not _LIBRARY.moesaic_is_vectorised(),
    reason="no compiled products: they need a compiler and AVX-512 with bfloat16",
)
DTYPES = [torch.float32, torch.bfloat16]
COUNTS = [[5, 0, 17], [1, 13, 25, 2], [130, 40], [1100, 3], [7], [12, 24, 36, 0], [0, 0]]
"""Rows of each group: below, at and above whole panels, and none."""
WIDTHS = [(40, 36), (33, 65), (1, 1), (1500, 31), (16, 544)]
"""Axes that are summed over: odd ones, and one of more units than are summed at a time; columns of
more than one task."""
ERROR = {torch.float64: 1e-14, torch.float32: 3e-6, torch.bfloat16: 4e-3}
"""Of a result's length: sums of 1,500 terms, and one rounding of 2^-9."""


def groups(counts: list[int]) -> tuple[Tensor, list[slice]]:
    ends = torch.tensor(counts).cumsum(0)
    starts = (ends - torch.tensor(counts)).tolist()
    parts = [slice(*each) for each in zip(starts, ends.tolist(), strict=True)]
    return ends.to(torch.int32), parts


def laid_out(x: Tensor, along: str) -> Tensor:
    """The same numbers, side by side in rows, in columns, or in rows of a wider matrix."""
    if along == "columns":
        return x.mT.contiguous().mT
    return F.pad(x, (0, 3))[..., : x.shape[-1]] if along == "gaps" else x


def assert_near(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    assert got.isfinite().all()
    off = (got.double() - want).norm() / want.norm().clamp(min=1e-30)
    assert not want.norm() or off < max(ERROR[dtype], ERROR[got.dtype])


@compiled
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("along", ["rows", "columns", "gaps"])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize(("a", "b"), WIDTHS)
def test_rows_meet_the_matrix_of_their_group(
    counts: list[int], a: int, b: int, along: str, dtype: torch.dtype, generator: torch.Generator
):
    ends, parts = groups(counts)
    rows = torch.randn(sum(counts), a, generator=generator).to(dtype)
    matrices = torch.randn(len(counts), a, b, generator=generator).to(dtype)
    out = rows.new_full((len(rows), b), float("nan"))
    panels.multiply_rows(rows, laid_out(matrices, along), ends, out)
    each = [rows[part].double() @ matrices[i].double() for i, part in enumerate(parts)]
    assert_near(out, torch.cat(each), dtype)


@compiled
@pytest.mark.parametrize("along", ["rows", "columns", "gaps"])
@pytest.mark.parametrize(("a", "b"), WIDTHS)
def test_float32_matrices_are_rounded_on_the_way_as_the_framework_rounds_them(
    a: int, b: int, along: str, generator: torch.Generator
):
    ends, _ = groups([13, 0, 30])
    rows = torch.randn(43, a, generator=generator).bfloat16()
    matrices = torch.randn(3, a, b, generator=generator)
    found = rows.new_empty(43, b)
    panels.multiply_rows(rows, laid_out(matrices, along), ends, found)
    rounded = rows.new_empty(43, b)
    panels.multiply_rows(rows, matrices.bfloat16(), ends, rounded)
    assert torch.equal(found, rounded)


@compiled
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("into", DTYPES, ids=str)
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_outer_products_of_a_group_are_summed(
    counts: list[int],
    adds: bool,
    into: torch.dtype,
    dtype: torch.dtype,
    generator: torch.Generator,
):
    ends, parts = groups(counts)
    left, right = (torch.randn(sum(counts), n, generator=generator).to(dtype) for n in (33, 70))
    before = torch.randn(len(counts), 33, 70, generator=generator).to(into)
    out = before.clone() if adds else torch.full_like(before, float("nan"))
    panels.multiply_columns(left, right, ends, out, adds)
    sums = torch.stack([left[part].double().T @ right[part].double() for part in parts])
    assert_near(out, sums + before.double() if adds else sums, dtype)


@compiled
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sides", [("rows", "rows"), ("columns", "columns"), ("gaps", "gaps")])
@pytest.mark.parametrize("depth", [1, 64, 2300])
def test_pairs_are_multiplied_whichever_way_they_lie(
    sides: tuple[str, str], depth: int, dtype: torch.dtype, generator: torch.Generator
):
    left = torch.randn(3, 29, depth, generator=generator).to(dtype)
    right = torch.randn(3, depth, 50, generator=generator).to(dtype)
    out = left.new_empty(3, 29, 50)
    panels.multiply(laid_out(left, sides[0]), laid_out(right, sides[1]), out)
    assert_near(out, left.double() @ right.double(), dtype)


@compiled
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_gives_the_same_bits_alone_as_among_others_and_on_any_number_of_threads(
    dtype: torch.dtype, generator: torch.Generator
):
    x = torch.randn(1, 700, 1100, generator=generator).to(dtype)
    w = torch.randn(1, 1100, 90, generator=generator).to(dtype)
    whole = panels.multiply(x, w, x.new_empty(1, 700, 90))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = panels.multiply(x[:, 411:412], w, x.new_empty(1, 1, 90))
        again = panels.multiply(x, w, x.new_empty(1, 700, 90))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone[0, 0], whole[0, 411])
    assert torch.equal(again, whole)


@compiled
@pytest.mark.parametrize("serves", [False, True])
@pytest.mark.parametrize("rows", [1, 15, 16, 40])
def test_a_linear_map_and_its_gradients_are_the_frameworks(
    rows: int, serves: bool, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(panels, "is_faster", lambda: serves)
    x, weight, upstream = (
        torch.randn(*shape, generator=generator).requires_grad_(i < 2)
        for i, shape in enumerate([(2, rows, 24), (50, 24), (2, rows, 50)])
    )
    found = torch.autograd.grad(linear(x, weight), (x, weight), upstream)
    wide = [each.detach().double().requires_grad_() for each in (x, weight)]
    want = torch.autograd.grad(F.linear(*wide), wide, upstream.double())
    assert_near(linear(x, weight), F.linear(*wide), torch.float32)
    for got, exact in zip(found, want, strict=True):
        assert_near(got, exact, torch.float32)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(20, 12, 30), (3, 20, 12, 30)], ids=str)
def test_products_are_made_added_or_written_where_they_belong(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
):
    *several, a, k, b = shape
    left = torch.randn(*several, a, k, generator=generator, dtype=torch.float64).to(dtype)
    right = torch.randn(*several, k, b, generator=generator, dtype=torch.float64).to(dtype)
    want = left.double() @ right.double()
    assert_near(matmul(left, right), want, dtype)
    wide = torch.promote_types(dtype, torch.float32)
    sums = torch.ones(want.shape, dtype=wide)
    assert matmul(left, right, sums, adds=True) is sums
    assert_near(sums, want + 1, dtype)
    matmul(left, right, sums)
    assert_near(sums, want, dtype)
