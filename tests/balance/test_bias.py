from pathlib import Path

import pytest
import torch
from ranks import loads_of, on_ranks
from torch import Tensor

from moesaic.balance.bias import bias_step_, move_biases_, sum_over_ranks
from moesaic.model.build import build_model
from moesaic.model.residency import Residency
from moesaic.model.transformer import Transformer


def bias_of(model: Transformer, layer: int) -> Tensor:
    return model.state_dict()[f"model.layers.{layer}.mlp.gate.e_score_correction_bias"]


def test_busy_experts_go_down_and_idle_ones_up_by_the_speed():
    bias_E = torch.tensor([0.5, 0.0, 0.0, -0.5])
    bias_step_(bias_E, torch.tensor([9, 4, 3, 0]), speed=0.001)
    assert bias_E.tolist() == pytest.approx([0.499, 0.0, 0.001, -0.499])


def test_an_expert_with_exactly_the_mean_load_stays():
    bias_E = torch.zeros(3)
    bias_step_(bias_E, torch.tensor([7, 7, 7]), speed=0.1)
    assert bias_E.tolist() == [0.0, 0.0, 0.0]


def test_only_experts_the_router_may_choose_move(tiny_config):
    residency = Residency.only({1: [0, 2, 5, 7]})
    model = build_model(tiny_config("v3"), residency=residency)
    load_E = torch.tensor([8, 0, 4, 0, 0, 4, 0, 0])
    move_biases_(model.moe_layers(), {1: load_E}, speed=0.5)
    assert bias_of(model, 1).tolist() == [-0.5, 0, 0, 0, 0, 0, 0, 0.5]


def test_speed_zero_moves_nothing(tiny_config):
    model = build_model(tiny_config("v3"))
    move_biases_(model.moe_layers(), {1: torch.arange(8)}, speed=0.0)
    assert not bias_of(model, 1).any()


def test_one_rank_has_the_whole_load():
    loads = {1: torch.tensor([1, 2]), 2: torch.tensor([3, 4])}
    assert sum_over_ranks(loads) == loads


@pytest.mark.slow
def test_the_loads_of_all_ranks_add_up(tmp_path: Path):
    assert on_ranks(loads_of, 2, tmp_path) == [{1: [2, 4], 2: [6, 9]}] * 2
