import pytest
import torch

from moesaic.balance.stats import dropped_share, load_entropy, max_violation, reachable_loads
from moesaic.model.build import build_model
from moesaic.model.residency import Residency


def test_violation_is_how_far_the_busiest_expert_is_above_the_mean():
    assert max_violation(torch.tensor([4, 4, 4, 4])) == 0.0
    assert max_violation(torch.tensor([8, 4, 4, 0])) == 1.0
    assert max_violation(torch.tensor([16, 0, 0, 0])) == 3.0


def test_violation_of_no_load_is_zero():
    assert max_violation(torch.zeros(4, dtype=torch.int64)) == 0.0


def test_experts_the_router_may_not_choose_are_no_violation(tiny_config):
    layers = build_model(tiny_config("v3"), residency=Residency.only({1: [0, 2, 5]})).moe_layers()
    load_E = torch.tensor([4, 0, 4, 0, 0, 4, 0, 0])
    loads = reachable_loads(layers, {1: load_E, 2: load_E})
    assert loads[1].tolist() == [4, 4, 4]
    assert loads[2].tolist() == load_E.tolist()


def test_entropy_is_one_for_an_even_load_and_zero_for_one_expert():
    assert load_entropy(torch.tensor([5, 5, 5])) == pytest.approx(1.0)
    assert load_entropy(torch.tensor([15, 0, 0])) == 0.0
    assert load_entropy(torch.tensor([1, 1, 0, 0])) == pytest.approx(0.5)


def test_dropped_share_counts_pairs():
    assert dropped_share(None) == 0.0
    assert dropped_share(torch.tensor([[True, False], [True, True]])) == 0.25
