"""`RMSNorm`."""

import torch
from torch import Tensor, nn

from moesaic.kernels.elementwise import rms_norm


class RMSNorm(nn.Module):
    """Unit root mean square times a learned weight. See `kernels.reference.rms_norm`."""

    weight: Tensor

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        return rms_norm(x, self.weight, self.eps)
