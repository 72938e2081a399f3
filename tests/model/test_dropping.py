"""Token dropping by the capacity of devices."""

from collections.abc import Callable
from math import ceil
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import gradients, random_ids, random_model
from torch import Tensor

from moesaic.config.model import ModelConfig
from moesaic.model.dropping import Dropping
from moesaic.model.trace import RoutingTrace

Build = Callable[..., ModelConfig]
Order = Literal["score", "position"]

ORDERS: tuple[Order, ...] = ("score", "position")


def random_choice(
    experts: int, tokens: int, chosen: int, seed: int, skew: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Scores of every expert, and each token's best ones, best first."""
    generator = torch.Generator().manual_seed(seed)
    logits_TE = torch.randn(tokens, experts, generator=generator) - skew * torch.arange(experts)
    scores_TE = logits_TE.softmax(dim=1)
    return scores_TE, scores_TE.topk(chosen, dim=1).indices


def kept_by_hand(dropping: Dropping, scores_TE: Tensor, ids_TK: Tensor) -> Tensor:
    """The same by filling devices one pair at a time."""
    tokens, chosen = ids_TK.shape
    capacity = ceil(dropping.capacity_factor * tokens * chosen / dropping.devices)
    exempt_T = [False] * tokens
    if dropping.exempt_B is not None:
        exempt_T = dropping.exempt_B.repeat_interleave(tokens // len(dropping.exempt_B)).tolist()
    pairs = [(t, k) for k in range(chosen) for t in range(tokens)]
    if dropping.order == "score":
        pairs.sort(key=lambda p: (not exempt_T[p[0]], -scores_TE[p[0], ids_TK[p]].item(), p))
    held = [0] * dropping.devices
    kept_TK = torch.zeros_like(ids_TK, dtype=torch.bool)
    for pair in pairs:
        device = int(ids_TK[pair]) * dropping.devices // scores_TE.shape[1]
        kept_TK[pair] = held[device] < capacity or exempt_T[pair[0]]
        held[device] += 1
    return kept_TK


@given(data=st.data())
def test_each_device_keeps_the_first_of_its_pairs_up_to_its_capacity(data: st.DataObject):
    devices = data.draw(st.sampled_from([1, 2, 4, 8]))
    tokens = data.draw(st.integers(1, 12)) * 2
    scores_TE, ids_TK = random_choice(
        8, tokens, data.draw(st.integers(1, 4)), data.draw(st.integers(0, 99)), skew=0.5
    )
    dropping = Dropping(
        capacity_factor=data.draw(st.sampled_from([0.3, 1.0, 1.25, 9.0])),
        devices=devices,
        order=data.draw(st.sampled_from(ORDERS)),
        exempt_B=data.draw(st.sampled_from([None, torch.tensor([True, False])])),
    )
    assert torch.equal(dropping.kept(scores_TE, ids_TK), kept_by_hand(dropping, scores_TE, ids_TK))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("exempt", [False, True])
def test_no_device_computes_more_than_its_capacity_but_for_exempt_sequences(
    order: Order, exempt: bool
):
    scores_TE, ids_TK = random_choice(16, 60, 3, seed=0, skew=0.3)
    exempt_B = torch.tensor([True, False, False]) if exempt else None
    kept_TK = Dropping(1.0, 4, order, exempt_B).kept(scores_TE, ids_TK)
    if exempt:
        assert kept_TK[:20].all()
        kept_TK[:20] = False
    per_device = [int(kept_TK[ids_TK // 4 == device].sum()) for device in range(4)]
    assert not kept_TK.all()
    assert max(per_device) <= ceil(60 * 3 / 4)


def test_the_lowest_scores_are_dropped():
    """DeepSeek-V2 (arXiv 2405.04434) section 2.2.4."""
    scores_TE, ids_TK = random_choice(8, 40, 2, seed=0, skew=0.5)
    kept_TK = Dropping(1.0, 4).kept(scores_TE, ids_TK)
    score_TK = scores_TE.gather(1, ids_TK)
    for device in range(4):
        here_TK = ids_TK // 2 == device
        dropped = score_TK[here_TK & ~kept_TK]
        if len(dropped):
            assert dropped.max() <= score_TK[here_TK & kept_TK].min()
    assert not kept_TK.all()


def test_first_choices_go_before_second_ones_and_earlier_tokens_before_later_ones():
    """GShard (arXiv 2006.16668) section 2.2, one device per expert."""
    ids_TK = torch.tensor([[0, 1], [0, 1], [1, 0], [1, 0], [0, 2], [2, 0]])
    scores_TE = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
    kept_TK = Dropping(1.0, 4, "position").kept(scores_TE, ids_TK)  # capacity 12 / 4 = 3
    first, second = kept_TK.unbind(1)
    assert first.tolist() == [True, True, True, True, True, True]
    assert second.tolist() == [True, False, False, False, True, False]


def test_enough_capacity_drops_nothing():
    scores_TE, ids_TK = random_choice(8, 40, 2, seed=0, skew=2.0)
    for order in ORDERS:
        assert Dropping(4.0, 4, order).kept(scores_TE, ids_TK).all()


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_the_trace_says_what_was_dropped(tiny_config: Build, family: str):
    config = tiny_config(family, initializer_range=0.3)
    trace = RoutingTrace()
    dropping = Dropping(0.5, 4, exempt_B=torch.tensor([True, False]))
    ids_BS = random_ids(config, 2, 20)
    random_model(config).loss(ids_BS, ids_BS, trace=trace, dropping=dropping)
    for routing in trace.layers.values():
        kept_TK = routing.kept_TK
        assert kept_TK is not None
        assert kept_TK[:20].all()
        assert not kept_TK.all()
        assert torch.equal(kept_TK, dropping.kept(routing.scores_TE, routing.ids_TK))
        assert not routing.weights_TK[~kept_TK].any()
        assert routing.load_E.sum() == routing.ids_TK.numel()


def test_nothing_is_dropped_unless_asked_for(tiny_config: Build):
    config = tiny_config("v2")
    trace = RoutingTrace()
    ids_BS = random_ids(config, 2, 20)
    random_model(config).loss(ids_BS, ids_BS, trace=trace)
    assert all(routing.kept_TK is None for routing in trace.layers.values())


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_capacity_for_all_leaves_losses_and_gradients_as_they_are(tiny_config: Build, family: str):
    config = tiny_config(family)
    model, ids_BS = random_model(config), random_ids(config, 2, 20)
    losses, found = [], []
    for dropping in (None, Dropping(100.0, 8)):
        loss = model.loss(ids_BS, ids_BS, dropping=dropping)
        loss.next_token.backward()
        losses.append(loss.next_token.detach())
        found.append(gradients(model))
    assert torch.equal(*losses)
    torch.testing.assert_close(*found)


def test_a_dropped_pair_contributes_nothing_and_learns_nothing(tiny_config: Build):
    """With every pair dropped, what is left is a model of its shared experts alone."""
    config = tiny_config("v3", num_nextn_predict_layers=0)
    model, ids_BS = random_model(config), random_ids(config, 2, 20)
    trace = RoutingTrace()
    none = Nothing(1.0, 8)
    loss = model.loss(ids_BS, ids_BS, trace=trace, dropping=none)
    loss.next_token.backward()
    for moe in model.moe_layers().values():
        assert moe.shared_experts is not None
        for stack in (*moe.experts.parameters(), moe.gate.weight):
            assert isinstance(stack, Tensor)
            assert stack.grad is None or not stack.grad.any()
        assert all(x.grad is not None and x.grad.any() for x in moe.shared_experts.parameters())
        for stack in moe.experts.parameters():
            stack.data.zero_()
    torch.testing.assert_close(model.loss(ids_BS, ids_BS).next_token, loss.next_token)


class Nothing(Dropping):
    """Devices without any capacity."""

    def kept(self, scores_TE: Tensor, ids_TK: Tensor) -> Tensor:
        return torch.zeros_like(ids_TK, dtype=torch.bool)
