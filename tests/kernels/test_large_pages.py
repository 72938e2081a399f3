"""Memory in large pages."""

import pytest
import torch

from moesaic.kernels.large_pages import in_large_pages


@pytest.mark.parametrize("size", [0, 10, 3 * 2**20])
def test_a_tensor_in_large_pages_is_the_same_and_keeps_its_values(size: int):
    tensor = torch.arange(size)
    assert in_large_pages(tensor) is tensor
    torch.testing.assert_close(tensor, torch.arange(size))


def test_a_tensor_without_memory_is_left_alone():
    tensor = torch.empty(2**22, device="meta")
    assert in_large_pages(tensor) is tensor
