"""Batches of random tokens: several documents in a row, padding, and tokens not to be learned."""

from collections.abc import Callable

import pytest
import torch

from moesaic.data.batch import IGNORED, Batch


def _batch(rows: int, positions: int, generator: torch.Generator) -> Batch:
    ids_BS = torch.randint(2, 64, (rows, positions), generator=generator)
    labels_BS = ids_BS.roll(-1, dims=1)
    documents_BS = torch.zeros_like(ids_BS)
    documents_BS[:, positions // 2 :] = 1
    documents_BS[:, positions - 2 :] = 2  # padding
    labels_BS[:, positions - 2 :] = IGNORED
    labels_BS[:, :2] = IGNORED  # a prompt
    positions_BS = torch.arange(positions).repeat(rows, 1)
    positions_BS[:, positions // 2 :] -= positions // 2
    return Batch(ids_BS, labels_BS, positions_BS, documents_BS)


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """``make_batch(rows, positions, generator)``."""
    return _batch
