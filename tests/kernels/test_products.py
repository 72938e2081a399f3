"""Compiled products of rows with activations, of every form and of awkward sizes.

Weights lie beside memory that nobody may touch: what read beyond a row's end would end the process.
"""

from ctypes import byref

import pytest
import torch
from kernels.guarded import Side, guarded, guarded_rows
from torch import Tensor
from torch.nn import functional as F

from moesaic.kernels.groupwise import GROUP
from moesaic.kernels.native.build import library
from moesaic.kernels.native.pack import BITS, Kind, Matrix, Rows
from moesaic.kernels.native.structures import Model, Pass, native_library

pytestmark = pytest.mark.skipif(isinstance(library(), str), reason=f"not compiled: {library()}")

KINDS: tuple[Kind, ...] = ("float32", "bfloat16", "int8", "int4", "float8", "lossless")
WIDTHS = (1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 96, 127, 128, 129, 191, 192, 200, 1000, 1024, 1025)
"""A vector more or less, an odd number of groups, and more groups than are scaled at once."""
COUNTS = (1, 2, 3, 4, 5, 9)


def random_rows(n: int, width: int, kind: Kind, generator: torch.Generator) -> Rows:
    """Any bytes that a weight can consist of, but no values that are none."""
    rows = Rows.empty(n, width, kind)
    if rows.scales is None:
        rows.values.normal_(generator=generator)
        return rows
    if kind == "lossless":
        weight = torch.randn(n, width, generator=generator)
        far = torch.randint(0, width, (n, 4), generator=generator)
        rows.put_(weight.scatter(1, far, 2.0**-20))
        return rows
    rows.values.random_(generator=generator)
    if kind == "float8":
        rows.values[rows.values & 127 == 127] = 0
    rows.scales.normal_(generator=generator)
    return rows


def multiplied(head: Matrix, x_TD: Tensor, scale_D: Tensor, threads: int) -> Tensor:
    """What a pass through no layers gives: the normed input times the weight, as a head."""
    n, width = x_TD.shape
    found = torch.full((n, head.rows), torch.nan)
    wanted = torch.arange(n, dtype=torch.int32)
    model = Model(head=head, hidden=width, heads=1, key_heads=1, head_width=2, groups=1)
    told = Pass(
        wanted=wanted.data_ptr(),
        last_norm=scale_D.data_ptr(),
        stream=x_TD.data_ptr(),
        logits=found.data_ptr(),
        count=n,
        n_logits=n,
        threads=threads,
    )
    assert native_library().moesaic_pass(byref(model), byref(told)) == 0
    return found


def as_multiplied(x_TD: Tensor, kind: Kind) -> Tensor:
    """Activations as weights of a kind meet them, float64."""
    if kind == "float32":
        return x_TD.double()
    if kind in ("bfloat16", "float8", "lossless"):
        return x_TD.bfloat16().double()
    width = x_TD.shape[1]
    grouped = F.pad(x_TD, (0, -width % GROUP)).unflatten(1, (-1, GROUP))
    largest = grouped.abs().amax(-1, keepdim=True)
    inverse = torch.where(largest > 0, 127 / largest, 0)
    codes = (grouped * inverse).round()
    return (codes.double() * (largest / 127)).flatten(1)[:, :width]


def check(kind: Kind, n_rows: int, width: int, n: int, threads: int = 1, side: Side = "after"):
    generator = torch.Generator().manual_seed(1000 * width + 10 * n_rows + n)
    rows = random_rows(n_rows, width, kind, generator)
    # Of length √D whatever their signs, so that the norm leaves the scale, bit for bit.
    signs = torch.randint(0, 2, (n, width), generator=generator) * 2.0 - 1
    scale = torch.randn(width, generator=generator)
    beside_walls = guarded_rows(rows, side)
    got = multiplied(beside_walls.matrix(), guarded(signs, side), guarded(scale, side), threads)
    activations = as_multiplied(signs * scale, kind)
    want = activations @ rows.floats().double().T
    most = activations.abs() @ largest_parts(rows).T
    assert ((got - want).abs() <= 2e-6 * most).all(), (kind, n_rows, width, n)  # float32 sums


def largest_parts(rows: Rows) -> Tensor:
    """What is summed: codes with what makes them positive, which is taken off later."""
    floats = rows.floats().double().abs()
    if rows.kind not in BITS or rows.scales is None:
        return floats
    offsets = 2 ** (BITS[rows.kind] - 1) * rows.scales.double().abs()
    return floats + offsets.repeat_interleave(GROUP, dim=1)[:, : rows.width]


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_exact_at_every_width(kind: Kind):
    for width in WIDTHS:
        for n in (1, 4, 5):
            check(kind, 7, width, n)


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_exact_for_every_number_of_rows_and_activations(kind: Kind):
    for n_rows in range(1, 10):
        for n in COUNTS:
            check(kind, n_rows, 72, n)
    check(kind, 5, 320, 256)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_share_rows_and_read_nothing_before_them(kind: Kind):
    for n_rows in (1, 2, 5, 23):
        for threads in (2, 3):
            check(kind, n_rows, 72, 3, threads, side="before")


@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_lossless_gives_the_bits_of_bfloat16(width: int):
    generator = torch.Generator().manual_seed(width)
    rows = random_rows(11, width, "lossless", generator)
    plain = Rows(rows.floats().bfloat16(), None, width, "bfloat16")
    x_TD = torch.randn(5, width, generator=generator)
    got, want = (multiplied(r.matrix(), x_TD.clone(), torch.ones(width), 2) for r in (rows, plain))
    assert torch.equal(got, want)


def test_a_pass_that_memory_does_not_hold_does_not_begin():
    model = Model(hidden=2**20, heads=1, key_heads=1, head_width=2, groups=1)
    told = Pass(count=2**30, threads=1)
    assert native_library().moesaic_pass(byref(model), byref(told)) == 2
