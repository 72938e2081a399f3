"""Memory beside which nothing may be read: it lies against a page that nobody may touch."""

import ctypes
import mmap
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from moesaic.infer.held import HeldExperts, HeldLinear
from moesaic.kernels.native.pack import Rows

Side = Literal["before", "after"]
"""Where the page lies that a wrong read meets."""


def guarded(tensor: Tensor, side: Side = "after") -> Tensor:
    """The same values; a read beyond their end, or before their beginning, ends the process."""
    tensor = tensor.detach().contiguous()
    page, size = mmap.PAGESIZE, max(1, tensor.nbytes)
    inside = -(-size // page) * page
    memory = mmap.mmap(-1, inside + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    first = 0 if side == "after" else page
    wall = address + (inside if side == "after" else 0)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    assert protect(ctypes.c_void_p(wall), ctypes.c_size_t(page), 0) == 0
    start = inside - tensor.nbytes if side == "after" else first
    if not tensor.numel():
        return tensor
    taken = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=start)
    return taken.view(tensor.shape).copy_(tensor)


def guarded_rows(rows: Rows, side: Side = "after") -> Rows:
    """The same rows; values and what stands beside them each beside a page of their own."""
    beside = (None if each is None else guarded(each, side) for each in (rows.scales, rows.others))
    scales, others = beside
    return replace(rows, values=guarded(rows.values, side), scales=scales, others=others)


def guard_(model: nn.Module, side: Side = "after") -> None:
    """Let everything of a model lie so."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = guarded(tensor.data, side)
    for module in model.modules():
        if isinstance(module, HeldLinear):
            module.rows = guarded_rows(module.rows, side)
        elif isinstance(module, HeldExperts):
            module.rows_in = guarded_rows(module.rows_in, side)
            module.rows_out = guarded_rows(module.rows_out, side)
