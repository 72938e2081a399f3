"""Memory in large pages."""

import pytest
import torch

from moesaic.kernels.large_pages import empty_in_large_pages, in_large_pages


@pytest.mark.parametrize("size", [0, 10, 3 * 2**20])
def test_a_tensor_in_large_pages_is_the_same_and_keeps_its_values(size: int):
    tensor = torch.arange(size)
    assert in_large_pages(tensor) is tensor
    torch.testing.assert_close(tensor, torch.arange(size))


def test_a_tensor_without_memory_is_left_alone():
    tensor = torch.empty(2**22, device="meta")
    assert in_large_pages(tensor) is tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize("shape", [(0, 8), (3, 5), (3000, 1111), (2**22,)])
def test_new_memory_in_large_pages_holds_what_is_written(
    shape: tuple[int, ...], dtype: torch.dtype
):
    values = torch.arange(torch.Size(shape).numel()).remainder(251).view(shape).to(dtype)
    kept = empty_in_large_pages(*shape, dtype=dtype).copy_(values)
    others = [empty_in_large_pages(*shape, dtype=dtype).fill_(1) for _ in range(3)]
    assert kept.shape == shape
    assert kept.is_contiguous()
    assert kept.nbytes < 2**21 or kept.data_ptr() % 2**21 == 0
    assert torch.equal(kept, values)
    part = kept[1:]
    del kept, others
    assert torch.equal(part, values[1:])
