"""The first paper's baselines: Dense, Hash Layer, Switch and GShard."""

from collections.abc import Callable

import pytest
import torch
from models import gradients, random_ids, random_model

from moesaic.config.model import ModelConfig
from moesaic.config.presets import get_preset
from moesaic.model.dropping import Dropping
from moesaic.model.residency import Residency
from moesaic.model.trace import RoutingTrace

Build = Callable[..., ModelConfig]

BASELINES = ["dense", "hash", "switch", "gshard"]


def small_baseline(name: str) -> ModelConfig:
    """The preset with its widths cut down; everything that makes it a baseline stays."""
    config = get_preset(f"deepseek-moe-2b-{name}")
    return config.changed(
        vocab_size=97,
        hidden_size=40,
        num_hidden_layers=2,
        intermediate_size=48,
        moe_intermediate_size=None if name == "dense" else 48,
    )


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_learns(name: str):
    config = small_baseline(name)
    model = random_model(config)
    ids_BS = random_ids(config, 2, 20)
    losses = []
    for _ in range(3):
        loss = model.loss(ids_BS[:, :-1], ids_BS[:, 1:])
        (loss.next_token / loss.tokens).backward()
        losses.append(loss.next_token.item())
        found = gradients(model)
        assert len(found) == len(list(model.parameters()))
        for name, parameter in model.named_parameters():
            assert found[name].isfinite().all()
            parameter.data -= 0.5 * found[name]
    assert losses[0] > losses[1] > losses[2]


def test_switch_weighs_its_one_expert_by_its_share():
    """Not by 1: the router learns through it. arXiv 2101.03961 eq. 2."""
    config = small_baseline("switch")
    trace = RoutingTrace()
    model = random_model(config)
    model(random_ids(config, 2, 20), trace=trace)
    for routing in trace.layers.values():
        assert routing.ids_TK.shape[1] == 1
        best = routing.scores_TE.max(dim=1, keepdim=True)
        assert torch.equal(routing.ids_TK, best.indices)
        torch.testing.assert_close(routing.weights_TK, best.values)


def test_gshard_normalises_the_gate_values_of_its_two_experts():
    """arXiv 2006.16668 algorithm 1."""
    config = small_baseline("gshard")
    trace = RoutingTrace()
    random_model(config)(random_ids(config, 2, 20), trace=trace)
    for routing in trace.layers.values():
        assert routing.ids_TK.shape[1] == 2
        torch.testing.assert_close(routing.weights_TK.sum(1), torch.ones(40))


@pytest.mark.parametrize("name", ["switch", "gshard", "hash"])
def test_a_baseline_trains_with_a_capacity_per_expert(name: str):
    config = small_baseline(name)
    model, trace = random_model(config), RoutingTrace()
    ids_BS = random_ids(config, 2, 20)
    dropping = Dropping(1.0, config.experts, "position")
    model.loss(ids_BS, ids_BS, trace=trace, dropping=dropping).next_token.backward()
    assert gradients(model)
    most = -(-40 * (config.num_experts_per_tok or 0) // config.experts)
    for routing in trace.layers.values():
        kept = routing.ids_TK[routing.kept_TK]
        assert kept.bincount().max() <= most


def test_a_dense_model_has_no_routing():
    config = small_baseline("dense")
    model, trace = random_model(config), RoutingTrace()
    model(random_ids(config, 1, 5), trace=trace)
    assert trace.layers == {}
    assert model.moe_layers() == {}


def hashed(
    tiny_config: Build, ids: torch.Tensor, allowed: tuple[int, ...] | None = None
) -> dict[int, torch.Tensor]:
    """Where each token went, by layer."""
    config = tiny_config("v1", topk_method="hash", num_experts_per_tok=1, vocab_size=4096)
    residency = None if allowed is None else Residency.only({1: allowed, 2: allowed})
    trace = RoutingTrace()
    random_model(config, residency=residency)(ids, trace=trace)
    return {layer: routing.ids_TK.squeeze(1) for layer, routing in trace.layers.items()}


def test_the_hash_depends_on_the_token_alone(tiny_config: Build):
    """Not on its place, the batch, the weights or the run."""
    one = hashed(tiny_config, torch.tensor([[5, 9, 5, 77]]))
    two = hashed(tiny_config, torch.tensor([[77, 77, 1], [5, 2, 9]]))
    for layer in (1, 2):
        expert = dict(zip((5, 9, 5, 77), one[layer].tolist(), strict=True))
        again = dict(zip((77, 77, 1, 5, 2, 9), two[layer].tolist(), strict=True))
        assert one[layer][0] == one[layer][2]
        assert {token: again[token] for token in expert} == expert


def test_the_hash_is_the_same_on_every_machine(tiny_config: Build):
    """A checkpoint means nothing without it."""
    found = hashed(tiny_config, torch.tensor([[0, 1, 2, 3, 100, 1000, 2000, 3000, 4000, 4095]]))
    assert found[1].tolist() == [6, 0, 6, 0, 2, 0, 2, 6, 3, 7]
    assert found[2].tolist() == [0, 7, 7, 5, 4, 0, 4, 5, 5, 4]


def test_the_hash_spreads_tokens_evenly_and_otherwise_in_every_layer(tiny_config: Build):
    found = hashed(tiny_config, torch.arange(4096)[None])
    for ids in found.values():
        load_E = ids.bincount(minlength=8)
        assert load_E.min() > 0.85 * 4096 / 8  # a fair draw has a deviation of 4 %
        assert load_E.max() < 1.15 * 4096 / 8
    agreeing = (found[1] == found[2]).double().mean()
    assert abs(agreeing - 1 / 8) < 0.03


def test_the_hash_keeps_to_allowed_experts(tiny_config: Build):
    found = hashed(tiny_config, torch.arange(500)[None], allowed=(1, 4, 6))
    for ids in found.values():
        assert ids.unique().tolist() == [1, 4, 6]


def test_hash_gate_values_are_one(tiny_config: Build):
    config = tiny_config("v1", topk_method="hash", num_experts_per_tok=1)
    trace = RoutingTrace()
    model = random_model(config)
    model(random_ids(config, 1, 20), trace=trace)
    for routing in trace.layers.values():
        assert routing.weights_TK.dtype == torch.float32
        assert (routing.weights_TK == 1).all()
        assert routing.load_E.sum() == 20
    assert not any("gate.weight" in name for name in model.state_dict())
