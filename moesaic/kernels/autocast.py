"""Autocast for the kernels with a backward pass of their own, which the framework cannot cast."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")


def follows_autocast(
    kernel: Callable[Concatenate[Tensor, P], Tensor],
) -> Callable[Concatenate[Tensor, P], Tensor]:
    """The kernel with its first input in the dtype of autocast, where that is on."""

    @wraps(kernel)
    def cast_first(x: Tensor, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        device = x.device.type
        if not torch.is_autocast_enabled(device):
            return kernel(x, *args, **kwargs)
        with torch.autocast(device, enabled=False):
            if x.dtype != torch.float64:
                x = x.to(torch.get_autocast_dtype(device))
            return kernel(x, *args, **kwargs)

    return cast_first
