"""What a training step does to rows between its matmuls, compiled: one sweep over memory each.

`elementwise` and `cross_entropy` decide when these serve; they mean the same without them.
Letters: R rows, D width, F inner width, V vocabulary.
"""

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from moesaic.errors import DataError
from moesaic.kernels.native.build import library

_SUFFIXES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def serve(*tensors: Tensor) -> bool:
    """Whether rows of these can be handled here: on a CPU, of one type, and there is a compiler."""
    dtype = tensors[0].dtype
    alike = all(x.device.type == "cpu" and x.dtype == dtype for x in tensors)
    return alike and dtype in _SUFFIXES and not isinstance(library(), str)


def norm(x: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`reference.rms_norm` of contiguous rows, and the scale of each, float32 [..., 1]."""
    out, width = torch.empty_like(x), x.shape[-1]
    scales = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    inputs = x, weight_D.contiguous(), x.numel() // width, width, eps, _threads()
    _call("norm", x.dtype, *inputs, out, scales)
    return out, scales


def norm_backward(
    grad: Tensor, x: Tensor, weight_D: Tensor, scales: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of `norm` with respect to ``x`` and, float32, the weight."""
    d_x, width, threads = torch.empty_like(x), x.shape[-1], _threads()
    d_weights = torch.zeros(threads, width)
    inputs = grad, x, weight_D.contiguous(), scales, x.numel() // width, width, threads
    _call("norm_backward", x.dtype, *inputs, d_x, d_weights)
    return d_x, d_weights.sum(0)


def gated(gate: Tensor, up: Tensor, weights: Tensor | None = None) -> Tensor:
    """``silu(gate) · up``, each row times its weight.

    Args:
        gate: [R, F]; its rows may be parts of longer ones, those of ``up`` of as long ones.
        up: [R, F].
        weights: float32 [R]; None for 1.
    """
    rows, width = gate.shape
    assert _are_spaced_alike(gate, up)
    out = gate.new_empty(rows, width)
    _call("gated", gate.dtype, gate, up, gate.stride(0), weights, rows, width, _threads(), out)
    return out


def gated_backward(
    grad: Tensor,
    gate: Tensor,
    up: Tensor,
    d_gate: Tensor,
    d_up: Tensor,
    weights: Tensor | None = None,
    active: Tensor | None = None,
    d_weights: Tensor | None = None,
) -> None:
    """Write the gradients of `gated`.

    Args:
        grad: [R, F], of the result without the weights.
        gate: as in `gated`.
        up: as in `gated`.
        d_gate: receives the gradient; laid out as ``gate``.
        d_up: receives the gradient.
        weights: as in `gated`.
        active: receives the result of `gated`, if given.
        d_weights: receives the gradient of the weights, float32 [R], if given.
    """
    rows, width = gate.shape
    assert _are_spaced_alike(gate, up, d_gate, d_up)
    assert grad.is_contiguous()
    inputs = grad, gate, up, gate.stride(0), weights, rows, width, _threads()
    _call("gated_backward", gate.dtype, *inputs, d_gate, d_up, active, d_weights)


def cross_entropy(logits_RV: Tensor, labels_R: Tensor, wants_grad: bool) -> Tensor:
    """The loss of each row, float32 [R]; the gradient takes the place of the logits, if wanted.

    Raises:
        DataError: if a label is no token.
    """
    rows, width = logits_RV.shape
    _check_labels(labels_R, width)
    losses_R = torch.empty(rows)
    inputs = logits_RV, labels_R, rows, width, _threads(), int(wants_grad)
    _call("cross_entropy", logits_RV.dtype, *inputs, losses_R)
    return losses_R


def _check_labels(labels_R: Tensor, n_tokens: int) -> None:
    """See that each label is an index of a row: memory beside it would be written otherwise."""
    assert labels_R.dtype == torch.int64
    assert labels_R.is_contiguous()
    for label in torch.stack(labels_R.aminmax()).tolist() if len(labels_R) else ():
        if not 0 <= label < n_tokens:
            raise DataError(
                f"label {label} is not one of the {n_tokens} tokens; use the tokenizer that "
                "belongs to the model"
            )


def softmax_(scores: Tensor, seen: int) -> None:
    """Softmax of the last axis in place.

    Args:
        scores: [matrices, rows, columns], contiguous.
        seen: columns that the first row of each matrix sees; every row sees one more than the one
            before, and none sees -inf.
    """
    _call("softmax", scores.dtype, scores, *scores.shape, seen, _threads())


def softmax_backward_(grads: Tensor, weights: Tensor) -> None:
    """Put the gradient of the scores in place of the weights'; both contiguous."""
    width = grads.shape[-1]
    _call(
        "softmax_backward", grads.dtype, grads, weights, grads.numel() // width, width, _threads()
    )


def add_(sums: Tensor, values: Tensor) -> None:
    """Add matrices to the beginnings of float32 ones.

    Args:
        sums: [matrices, …], of which the first axis may have gaps.
        values: the same shape, contiguous.
    """
    matrices, size = len(values), values[0].numel()
    _call("add", values.dtype, sums, sums.stride(0), values, matrices, size, _threads())


def _are_spaced_alike(*matrices: Tensor) -> bool:
    """Whether rows have no gaps inside, and the same ones between them."""
    steps = {x.stride(0) for x in matrices if len(x) > 1}
    return len(steps) < 2 and all(x.stride(1) == 1 or x.shape[1] == 1 for x in matrices)


def _threads() -> int:
    return torch.get_num_threads()


_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "norm": (c_void_p, c_void_p, c_int64, c_int64, c_float, c_int32, c_void_p, c_void_p),
    "norm_backward": (*(c_void_p,) * 4, c_int64, c_int64, c_int32, c_void_p, c_void_p),
    "gated": (c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_int64, c_int32, c_void_p),
    "gated_backward": (
        *(c_void_p, c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_int64, c_int32),
        *(c_void_p,) * 4,
    ),
    "cross_entropy": (c_void_p, c_void_p, c_int64, c_int64, c_int32, c_int32, c_void_p),
    "softmax": (c_void_p, c_int64, c_int64, c_int64, c_int64, c_int32),
    "softmax_backward": (c_void_p, c_void_p, c_int64, c_int64, c_int32),
    "add": (c_void_p, c_int64, c_void_p, c_int64, c_int64, c_int32),
}


def _call(name: str, dtype: torch.dtype, *arguments: Tensor | float | None) -> None:
    """Call a function of rows.cpp; tensors are handed over as addresses."""
    found = library()
    assert isinstance(found, ctypes.CDLL)
    function = getattr(found, f"moesaic_{name}_{_SUFFIXES[dtype]}")
    function.argtypes, function.restype = _SIGNATURES[name], None
    function(*(x.data_ptr() if isinstance(x, Tensor) else x for x in arguments))
