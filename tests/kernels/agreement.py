"""Holds a fast form to its reference: value and every gradient, from the same inputs."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from moesaic.kernels.native import panels

LARGEST_ERROR = {
    torch.float64: 1e-12,  # thousands of roundings of 2^-53
    torch.float32: 5e-6,  # sums of some hundred terms, each rounded by 2^-24
    torch.bfloat16: 4e-2,  # a chain of about ten roundings of 2^-8
}
"""Of a result's entries, over the largest of them. The reference runs in float64."""
DTYPES = tuple(LARGEST_ERROR)


@dataclass(frozen=True)
class Result:
    """What an operation returned, and the gradients of its inputs."""

    value: Tensor
    asked: tuple[bool, ...]
    """For each input whether its gradient was asked for."""
    gradients: tuple[Tensor | None, ...]


def run(form: Callable[..., Tensor], inputs: Sequence[Tensor], upstream: Tensor) -> Result:
    """Call a form and differentiate it.

    Args:
        form: called with the inputs.
        inputs: those that require a gradient are asked for it; any they hold is left alone.
        upstream: gradient of the result, rounded to the result's dtype.
    """
    leaves = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
    value = form(*leaves)
    if value.requires_grad:
        value.backward(upstream.to(value.dtype))
    asked = tuple(x.requires_grad for x in leaves)
    return Result(value.detach(), asked, tuple(x.grad for x in leaves))


def assert_agree(
    fast: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    generator: torch.Generator,
    dtype: torch.dtype,
) -> None:
    """Hold ``fast`` in its dtypes to ``reference`` in float64, values and gradients alike."""
    like = reference(*inputs)
    upstream = torch.randn(like.shape, generator=generator, dtype=torch.float64)
    upstream = upstream.to(like.device, dtype)
    got = run(fast, inputs, upstream)
    want = run(reference, [_widened(x) for x in inputs], upstream.double())
    assert got.value.dtype == like.dtype
    assert_close(got.value, want.value, dtype, "the result")
    for i, (gradient, x) in enumerate(zip(got.gradients, inputs, strict=True)):
        wanted = want.gradients[i]
        assert (gradient is None) == (wanted is None)
        if gradient is not None and wanted is not None:
            assert gradient.dtype == x.dtype
            assert_close(gradient, wanted, dtype, f"the gradient of input {i}")


def assert_close(got: Tensor, want: Tensor, dtype: torch.dtype, what: str) -> None:
    """Compare with the error that a dtype may make."""
    assert got.shape == want.shape
    if not want.numel():
        return
    largest = max(want.abs().max().item(), 0.1)  # 0.1: where all is 0, inputs are of order 1
    error = (got.double() - want).abs().max().item() / largest
    assert error <= max(LARGEST_ERROR[dtype], LARGEST_ERROR[got.dtype]), f"{what}: {error:.1e} off"


def _widened(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        return x
    return x.detach().double().requires_grad_(x.requires_grad)


def assert_only_asked(part: Result, whole: Result) -> None:
    """Gradients that were asked for are those of the whole, bit for bit; the others are None."""
    assert torch.equal(part.value, whole.value)
    for asked, got, want in zip(part.asked, part.gradients, whole.gradients, strict=True):
        assert (got is not None) == asked
        if got is not None and want is not None:
            assert torch.equal(got, want)


class Work(TorchDispatchMode):
    """Watches the operations that run while it is on, those of the framework and the compiled."""

    products = 0
    """Multiplications in matrix products."""
    largest = 0
    """Entries of the largest tensor that an operation made."""

    def __enter__(self) -> Self:
        self._patched = ExitStack()
        for name in ("multiply", "multiply_rows", "multiply_columns"):
            compiled = self._counted(getattr(panels, name))
            self._patched.enter_context(mock.patch.object(panels, name, compiled))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patched.close()

    def _counted(self, compiled: Callable[..., Any]) -> Callable[..., Any]:
        def counted(left: Tensor, right: Tensor, *rest: Any, **named: Any) -> Any:
            self.products += left.numel() * right.shape[-1]
            return compiled(left, right, *rest, **named)

        return counted

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("mm", "bmm", "addmm", "addmm_", "baddbmm", "baddbmm_"):
            left, right = args[-2:]
            self.products += left.numel() * right.shape[-1]
        out = func(*args, **(kwargs or {}))
        for result in out if isinstance(out, tuple | list) else (out,):
            if isinstance(result, Tensor):
                self.largest = max(self.largest, result.numel())
        return out
