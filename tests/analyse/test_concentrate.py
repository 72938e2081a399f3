"""How even the load is, and how much of the gate mass few experts have."""

import pytest
import torch

from moesaic.analyse.concentrate import evenness, fewest
from moesaic.analyse.counts import LayerCounts, Seen


def test_half_the_mass_takes_the_heaviest_experts() -> None:
    assert fewest(torch.tensor([1.0, 5.0, 3.0, 1.0]), 0.5) == 1
    assert fewest(torch.tensor([1.0, 4.0, 3.0, 2.0]), 0.5) == 2
    assert fewest(torch.ones(4), 0.5) == 2
    assert fewest(torch.zeros(4), 0.5) == 0


def test_evenness_is_told_of_the_tokens_counted() -> None:
    counts = LayerCounts.zero(4, 2)
    ids_TK = torch.tensor([[0, 1], [0, 1], [2, 0], [0, 1]])
    weights_TK = torch.tensor([[0.6, 0.2], [0.5, 0.1], [0.3, 0.3], [0.1, 0.3]])
    counts.add_(Seen(ids_TK, weights_TK))
    found = evenness(counts)
    assert found.max_violation == 1  # 4 tokens, where 2 would be even
    assert found.unused == 1
    assert found.half == 1
    assert found.gate_by_rank == pytest.approx((1.7 / 2.4, 0.7 / 2.4))  # the larger one first
    assert found.uncertainty is None
