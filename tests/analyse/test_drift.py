"""How differently two checkpoints route the same tokens."""

from math import log2

import pytest
import torch
from analyse.raw import random_seen

from moesaic.analyse.counts import Seen
from moesaic.analyse.drift import LayerDrift, score_divergence


def test_what_moved_is_counted_token_by_token() -> None:
    before, after = random_seen(40, seed=1), random_seen(40, seed=2)
    drift = LayerDrift.zero(8)
    drift.add_(before, after)
    pairs = list(zip(before.ids_TK.tolist(), after.ids_TK.tolist(), strict=True))
    moved = [len(set(new) - set(old)) for old, new in pairs]
    found, chosen = drift.shares, before.ids_TK.flatten().tolist()
    assert drift.before == pytest.approx([chosen.count(expert) / 120 for expert in range(8)])
    assert found["first"] == sum(old[0] != new[0] for old, new in pairs) / 40
    assert found["choices"] == sum(moved) / 120
    assert found["tokens"] == sum(map(bool, moved)) / 40
    assert before.scores_TE is not None
    assert after.scores_TE is not None
    bits = [
        sum(p * log2(p / q) for p, q in zip(old, new, strict=True))
        for old, new in zip(before.scores_TE.tolist(), after.scores_TE.tolist(), strict=True)
    ]
    assert found["divergence"] == pytest.approx(sum(bits) / 40, rel=1e-5)


def test_the_order_of_the_choices_after_the_best_does_not_count() -> None:
    scores_TE = torch.tensor([[0.5, 0.3, 0.2]])
    weights_TK = torch.ones(1, 3)
    drift = LayerDrift.zero(3)
    drift.add_(
        Seen(torch.tensor([[0, 1, 2]]), weights_TK, scores_TE),
        Seen(torch.tensor([[0, 2, 1]]), weights_TK, scores_TE),
    )
    assert drift.shares == {"first": 0, "choices": 0, "tokens": 0, "divergence": 0}


def test_scores_diverge_by_their_shares_not_by_their_size() -> None:
    scores_TE = torch.tensor([[0.9, 0.6, 0.3]])
    assert score_divergence(scores_TE, scores_TE / 3).item() == pytest.approx(0, abs=1e-6)
    halves_TE = torch.tensor([[0.0, 1.0, 1.0]])
    assert score_divergence(halves_TE, torch.ones(1, 3)).item() == pytest.approx(log2(1.5))
