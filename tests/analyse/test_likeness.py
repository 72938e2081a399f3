"""How alike the weights of experts are, and how far they moved."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from moesaic.analyse.likeness import (
    between,
    drift_of_weights,
    expert_cosines,
    likeness,
    router_cosines,
    summed_up,
)
from moesaic.checkpoint.load import Reader
from moesaic.model.build import load_model

Write = Callable[..., Path]


def test_cosines_are_those_of_all_weights_of_an_expert(write_checkpoint: Write) -> None:
    folder = write_checkpoint("v2")
    moe = load_model(folder).moe_layers()[2]
    vectors = torch.cat([moe.experts.gate_up_proj.flatten(1), moe.experts.down_proj.flatten(1)], 1)
    wanted = F.cosine_similarity(vectors[:, None], vectors[None], dim=2)
    found_EE = expert_cosines(Reader(folder), 2)
    assert torch.allclose(found_EE, wanted.double(), atol=1e-6)
    directions = Reader(folder).read("model.layers.2.mlp.gate.weight")
    wanted = F.cosine_similarity(directions[:, None], directions[None], dim=2)
    assert torch.allclose(router_cosines(Reader(folder), 2), wanted.double(), atol=1e-6)


@pytest.mark.parametrize("experts_at_once", [1, 3])
def test_a_layer_may_be_read_a_few_experts_at_a_time(
    experts_at_once: int, write_checkpoint: Write
) -> None:
    reader = Reader(write_checkpoint("v2"))
    found_EE = expert_cosines(reader, 1, block_bytes=experts_at_once * 4 * 16 * 8)
    assert torch.allclose(found_EE, expert_cosines(reader, 1), atol=1e-6)


def test_likeness_is_summed_up_over_pairs_of_different_experts() -> None:
    rows = [[1.0, 0.1, 0.5], [0.1, 1.0, -0.2], [0.5, -0.2, 1.0]]
    cosines_EE = torch.tensor(rows, dtype=torch.float64)
    assert between(cosines_EE).tolist() == [0.1, 0.5, -0.2]
    found = summed_up([cosines_EE, cosines_EE / 2])
    assert found["nearest"] == [[0, 2], [0, 2]]
    assert found["mean"] == pytest.approx([0.4 / 3, 0.2 / 3])
    assert (found["quantiles"][0][0], found["quantiles"][0][-1]) == (-0.2, 0.5)
    assert (found["edges"][0], found["edges"][-1]) == (-0.2, 0.5)
    assert [sum(row) for row in found["histogram"]] == [3, 3]
    assert found["histogram"][0][-1] == found["histogram"][0][0] == 1


def test_a_hash_has_no_directions_to_compare(write_checkpoint: Write) -> None:
    folder = write_checkpoint(
        "v1", topk_method="hash", num_experts_per_tok=1, n_shared_experts=None
    )
    found = likeness(Reader(folder), [1, 2])
    assert found["router"] is None
    assert len(found["experts"]["mean"]) == 2


def test_weights_that_did_not_move_moved_by_nothing(write_checkpoint: Write) -> None:
    one, other = Reader(write_checkpoint("v2")), Reader(write_checkpoint("v2", seed=5))
    assert drift_of_weights(one, one, [1]) == {"moved": [[0.0] * 8], "router": [[0.0] * 8]}
    found = drift_of_weights(one, other, [1])
    old, new = (load_model(reader.folder).moe_layers()[1] for reader in (one, other))
    before, after = (reader.read("model.layers.1.mlp.gate.weight")[3] for reader in (one, other))
    turned = ((after - before).norm() / before.norm()).item()
    assert found["router"][0][3] == pytest.approx(turned)
    parts = [
        torch.cat([moe.experts.gate_up_proj[5].flatten(), moe.experts.down_proj[5].flatten()])
        for moe in (old, new)
    ]
    moved = ((parts[1] - parts[0]).norm() / parts[0].norm()).item()
    assert found["moved"][0][5] == pytest.approx(moved)
