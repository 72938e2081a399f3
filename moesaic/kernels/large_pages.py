"""Large pages for memory that is read from end to end: the processor looks up fewer addresses."""

import ctypes
import mmap

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
