"""Compiled sweeps over rows of any width and number, beside memory that nobody may touch."""

from collections.abc import Callable, Iterator

import pytest
import torch
from kernels.guarded import Side, guarded
from torch import Tensor
from torch.nn import functional as F

from moesaic.errors import DataError
from moesaic.kernels.native import rows
from moesaic.kernels.native.build import library

pytestmark = pytest.mark.skipif(isinstance(library(), str), reason=f"not compiled: {library()}")

DTYPES = (torch.float32, torch.bfloat16)
WIDTHS = (1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 63, 65, 100, 129)
SIDES: tuple[Side, ...] = ("before", "after")
Make = Callable[..., Tensor]


@pytest.fixture
def threads() -> Iterator[None]:
    """Three threads, more than some inputs have rows."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=DTYPES, ids=str)
def each_size(request: pytest.FixtureRequest) -> Iterator[tuple[Make, int, int]]:
    """Some values of a type, and numbers of rows and columns."""

    def all_sizes() -> Iterator[tuple[Make, int, int]]:
        for width in WIDTHS:
            for n in (1, 2, 5):
                generator = torch.Generator().manual_seed(100 * width + n)
                side: Side = SIDES[width % 2]

                def make(*shape: int, dtype: torch.dtype = request.param) -> Tensor:
                    values = torch.randn(shape, generator=generator)  # noqa: B023
                    return guarded(values.to(dtype), side)  # noqa: B023

                yield make, n, width

    return all_sizes()


def check(got: Tensor, want: Tensor, name: str) -> None:
    wide, least = want.double(), 1e-5
    tolerance = 2e-5 if got.dtype == torch.float32 else 2**-7
    apart = (got.double() - wide).abs().max()
    assert apart <= tolerance * max(wide.abs().max().item(), least), name


def with_grads(run: Callable[..., Tensor], grad: Tensor, *inputs: Tensor) -> list[Tensor]:
    """The value and the gradients of all inputs, in float64."""
    wide = [x.double().requires_grad_() for x in inputs]
    value = run(*wide)
    return [value.detach(), *torch.autograd.grad(value, wide, grad.double())]


@pytest.mark.usefixtures("threads")
def test_norms_of_any_size(each_size: Iterator[tuple[Make, int, int]]):
    for make, n, width in each_size:
        x, weight, grad = make(n, width), make(width), make(n, width)

        def norm(x: Tensor, weight: Tensor) -> Tensor:
            return F.rms_norm(x, weight.shape, weight, 1e-6)

        want, d_x, d_weight = with_grads(norm, grad, x, weight)
        got, scales = rows.norm(x, weight, 1e-6)
        check(got, want, f"norm of {n} × {width}")
        got_x, got_weight = rows.norm_backward(grad, x, weight, guarded(scales))
        # Columns of a row that is as long as one value have next to no gradient.
        assert (got_x.double() - d_x).abs().max() <= 0.02 * (d_x.abs().max() + 1e-3)
        check(got_weight, d_weight, f"weight's gradient of {n} × {width}")


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("weighted", [False, True])
def test_gated_activations_of_any_size(each_size: Iterator[tuple[Make, int, int]], weighted: bool):
    for make, n, width in each_size:
        both, grad = make(n, 2 * width), make(n, width)
        weights = make(n, dtype=torch.float32) if weighted else None
        factors = torch.ones(n) if weights is None else weights

        def gated(both: Tensor, factors: Tensor) -> Tensor:
            gate, up = both.chunk(2, dim=1)
            return F.silu(gate) * up * factors.unsqueeze(1)

        want, d_both, d_factors = with_grads(gated, grad, both, factors)
        gate, up = both.chunk(2, dim=1)
        check(rows.gated(gate, up, weights), want, f"gated {n} × {width}")
        found, active, got = make(n, 2 * width), make(n, width), make(n, dtype=torch.float32)
        d_gate, d_up = found.chunk(2, dim=1)
        rows.gated_backward(grad, gate, up, d_gate, d_up, weights, active, got)
        check(found, d_both, f"gradients of {n} × {width}")
        check(active, want, f"gated again, {n} × {width}")
        check(got, d_factors, f"weights' gradients of {n} × {width}")


@pytest.mark.usefixtures("threads")
def test_losses_of_any_size(each_size: Iterator[tuple[Make, int, int]]):
    for make, n, width in each_size:
        logits, labels = make(n, width), guarded(torch.arange(n) * 7 % width)
        want, d_logits = with_grads(
            lambda x: F.cross_entropy(x, labels, reduction="none"),  # noqa: B023
            torch.ones(n),
            logits,
        )
        check(rows.cross_entropy(logits, labels, True), want, f"losses of {n} × {width}")
        check(logits, d_logits, f"gradients of {n} × {width}")


@pytest.mark.usefixtures("threads")
def test_softmax_of_any_size(each_size: Iterator[tuple[Make, int, int]]):
    for make, n, width in each_size:
        seen = max(1, width - n + 1)
        scores, grads = make(2, n, width), make(2, n, width)
        hidden = torch.arange(width) >= seen + torch.arange(n).unsqueeze(1)
        want, d_scores = with_grads(
            lambda x: x.masked_fill(hidden, -torch.inf).softmax(-1),  # noqa: B023
            grads,
            scores,
        )
        rows.softmax_(scores, seen)
        check(scores, want, f"softmax of {n} × {width}")
        rows.softmax_backward_(grads, scores)
        assert (grads.double() - d_scores).abs().max() <= 0.02, f"gradients of {n} × {width}"


@pytest.mark.usefixtures("threads")
def test_sums_of_any_size(each_size: Iterator[tuple[Make, int, int]]):
    for make, n, width in each_size:
        sums, values = make(n, 2, width, dtype=torch.float32), make(n, width)
        want = sums.clone()
        want[:, 0] += values
        rows.add_(sums[:, 0], values)
        check(sums, want, f"sums of {n} × {width}")


def test_a_weight_with_gaps_is_read_where_it_is():
    x, weight = torch.randn(3, 8), torch.randn(16)
    got, _ = rows.norm(x, weight[::2], 1e-6)
    check(got, F.rms_norm(x, (8,), weight[::2], 1e-6), "norm")


@pytest.mark.parametrize("label", [-1, 8])
def test_a_label_that_is_no_token_is_refused_before_memory_is_touched(label: int):
    with pytest.raises(DataError, match=f"label {label} is not one of the 8 tokens; use the"):
        rows.cross_entropy(torch.randn(3, 8), torch.tensor([0, label, 1]), True)
