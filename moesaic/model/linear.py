"""`Linear`: no bias, and the weight takes the dtype of what it is applied to."""

import torch
from torch import Tensor, nn

from moesaic.kernels.matmul import linear


class Linear(nn.Module):
    """``x · weightᵀ``. Float32 weights under bfloat16 activations are the mixed precision here."""

    weight: Tensor

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in))

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the last axis."""
        return linear(x, self.weight.to(x.dtype))
