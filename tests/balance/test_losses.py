"""Balance losses against the reports' equations, worked by hand on a few tokens."""

import pytest
import torch
from torch import Tensor

from moesaic.balance.losses import communication_loss, device_loss, expert_loss, sequence_loss
from moesaic.model.routing import Routing


def routing_of(scores: list[list[float]], ids: list[list[int]]) -> Routing:
    scores_TE, ids_TK = torch.tensor(scores, requires_grad=True), torch.tensor(ids)
    load_E = torch.bincount(ids_TK.flatten(), minlength=scores_TE.shape[1])
    return Routing(scores_TE, ids_TK, scores_TE.gather(1, ids_TK), load_E)


def even(rows: int, experts: int, chosen: int) -> Routing:
    """Every expert gets as many tokens of each row, and all scores are equal."""
    ids = [[(t * chosen + k) % experts for k in range(chosen)] for t in range(experts)] * rows
    return routing_of([[1 / experts] * experts] * (experts * rows), ids)


SMALL = routing_of([[0.5, 0.3, 0.1, 0.1], [0.4, 0.2, 0.3, 0.1]], [[0, 1], [0, 2]])
"""Two tokens, four experts, two chosen: f = 2, 1, 1, 0 and P = .45, .25, .2, .1."""


def test_expert_loss_is_the_sum_of_load_times_mean_score():
    assert expert_loss(SMALL, 1).item() == pytest.approx(2 * 0.45 + 1 * 0.25 + 1 * 0.2)


def test_device_loss_takes_the_mean_load_and_the_sum_of_scores_of_a_device():
    assert device_loss(SMALL, 1, devices=2).item() == pytest.approx(1.5 * 0.7 + 0.5 * 0.3)


def test_communication_loss_counts_a_token_once_per_device():
    # device 0 receives both tokens, device 1 one; D / (M·T) = 2 / (2·2)
    loss = communication_loss(SMALL, 1, devices=2, most_devices=2)
    assert loss.item() == pytest.approx(0.5 * (2 * 0.7 + 1 * 0.3))


def test_sequence_loss_normalises_the_scores_and_ignores_the_bias():
    # Sigmoid scores with sums 2 and 1. The bias sent both tokens to experts 2 and 3; the best
    # scores are 0, 1 and 0, 2.
    scores = [[1.0, 0.6, 0.2, 0.2], [0.4, 0.2, 0.3, 0.1]]
    routing = routing_of(scores, [[2, 3], [2, 3]])
    assert sequence_loss(routing, 1).item() == pytest.approx(2 * 0.45 + 1 * 0.25 + 1 * 0.2)


@pytest.mark.parametrize(("experts", "chosen"), [(8, 2), (6, 3), (4, 1)])
def test_an_even_load_costs_one(experts: int, chosen: int):
    routing = even(rows=2, experts=experts, chosen=chosen)
    torch.testing.assert_close(expert_loss(routing, 2), torch.ones(2))
    torch.testing.assert_close(device_loss(routing, 2, devices=2), torch.ones(2))
    torch.testing.assert_close(sequence_loss(routing, 2), torch.ones(2))


def test_a_balanced_batch_of_unbalanced_sequences_is_not_balanced():
    scores = [[0.9, 0.1]] * 3 + [[0.1, 0.9]] * 3
    routing = routing_of(scores, [[0]] * 3 + [[1]] * 3)
    assert routing.load_E.tolist() == [3, 3]
    torch.testing.assert_close(expert_loss(routing, 2), torch.tensor([1.8, 1.8]))


LOSSES = {
    "expert": lambda routing, rows, real=None: expert_loss(routing, rows, real),
    "device": lambda routing, rows, real=None: device_loss(routing, rows, 4, real),
    "communication": lambda r, rows, real=None: communication_loss(r, rows, 4, 2, real),
    "sequence": lambda routing, rows, real=None: sequence_loss(routing, rows, real),
}


def random_routing(rows: int, generator: torch.Generator) -> Routing:
    scores_TE = torch.rand(rows * 5, 8, generator=generator).softmax(-1).requires_grad_()
    ids_TK = scores_TE.topk(3, dim=-1).indices
    return Routing(scores_TE, ids_TK, scores_TE.gather(1, ids_TK), scores_TE.new_zeros(8))


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_a_batch_is_that_of_its_sequences(name: str, generator: torch.Generator):
    whole = random_routing(3, generator)
    parts = [
        Routing(
            whole.scores_TE[row * 5 : row * 5 + 5],
            whole.ids_TK[row * 5 : row * 5 + 5],
            whole.weights_TK[row * 5 : row * 5 + 5],
            whole.load_E,
        )
        for row in range(3)
    ]
    separate = torch.cat([LOSSES[name](part, 1) for part in parts])
    torch.testing.assert_close(LOSSES[name](whole, 3), separate)


@pytest.mark.parametrize("name", LOSSES)
def test_padding_does_not_count(name: str, generator: torch.Generator):
    padded = random_routing(1, generator)
    real_T = torch.tensor([True, True, True, False, False])
    short = Routing(padded.scores_TE[:3], padded.ids_TK[:3], padded.weights_TK[:3], padded.load_E)
    torch.testing.assert_close(LOSSES[name](padded, 1, real_T), LOSSES[name](short, 1))


@pytest.mark.parametrize("name", LOSSES)
def test_a_sequence_of_padding_costs_nothing(name: str, generator: torch.Generator):
    routing = random_routing(1, generator)
    loss_B: Tensor = LOSSES[name](routing, 1, torch.zeros(5, dtype=torch.bool))
    assert loss_B.tolist() == [0.0]


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_lowers_the_scores_of_busy_experts_most(name: str):
    scores_TE = torch.full((4, 8), 0.125, requires_grad=True)
    ids_TK = torch.tensor([[0, 1]] * 4)
    busy = scores_TE + torch.tensor([0.2, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    LOSSES[name](Routing(busy, ids_TK, busy[:, :2], scores_TE.new_zeros(8)), 1).sum().backward()
    assert scores_TE.grad is not None
    assert (scores_TE.grad[:, 0] > scores_TE.grad[:, -1]).all()
