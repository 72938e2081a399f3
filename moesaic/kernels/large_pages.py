"""Large pages for memory that is read from end to end: the processor looks up fewer addresses."""

import ctypes
import mmap

import torch
from torch import Tensor

_PAGE = 2**21


def in_large_pages(tensor: Tensor) -> Tensor:
    """The same tensor, whose memory on a CPU the system was asked to put into large pages.

    It does so where it can, as values are written there for the first time; elsewhere, and where a
    tensor is smaller than such a page, nothing changes.
    """
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None or tensor.device.type != "cpu":
        return tensor
    first = -(-tensor.data_ptr() // _PAGE) * _PAGE
    n_bytes = (tensor.data_ptr() + tensor.nbytes - first) // _PAGE * _PAGE
    if n_bytes > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(n_bytes), advice)
    return tensor


def empty_in_large_pages(*shape: int, dtype: torch.dtype) -> Tensor:
    """A tensor on the CPU, without values, in memory that nothing was ever written to.

    What a process has freed and takes again stays in the pages it was in. Where there are no large
    pages, or the tensor would not fill one, it is like any other.
    """
    n_bytes = torch.Size(shape).numel() * dtype.itemsize
    if n_bytes < _PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(*shape, dtype=dtype)
    try:
        memory = mmap.mmap(-1, n_bytes + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:  # too little memory: torch says so as elsewhere, if it has no more
        return torch.empty(*shape, dtype=dtype)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    whole = torch.frombuffer(memory, dtype=torch.uint8, offset=-address % _PAGE, count=n_bytes)
    return in_large_pages(whole.view(dtype).view(shape))
