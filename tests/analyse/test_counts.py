"""Counts are those of the raw routing, token by token."""

from collections.abc import Callable
from math import log

import pytest
import torch
from analyse.raw import CHOSEN, EXPERTS, random_seen
from models import random_ids, random_model

from moesaic.analyse.counts import LayerCounts, Seen, TokenCounts, normalised_entropy, see_batch
from moesaic.config.model import ModelConfig
from moesaic.data.batch import IGNORED, Batch
from moesaic.model.ablation import Ablation


def _counted(*parts: Seen) -> LayerCounts:
    counts = LayerCounts.zero(EXPERTS, CHOSEN)
    for seen in parts:
        counts.add_(seen)
    return counts


def test_every_token_is_counted_in_what_it_chose() -> None:
    seen = random_seen(50, seed=1)
    counts = _counted(seen)
    ids, weights = seen.ids_TK.tolist(), seen.weights_TK.tolist()
    for expert in range(EXPERTS):
        having = [k for k, row in enumerate(ids) if expert in row]
        assert counts.load_E[expert] == counts.sums.chosen_E[expert] == len(having)
        assert counts.first_E[expert] == sum(row[0] == expert for row in ids)
        mass = sum(weights[k][ids[k].index(expert)] for k in having)
        assert counts.sums.gate_E[expert].item() == pytest.approx(mass)
        for other in range(EXPERTS):
            assert counts.pairs_EE[expert, other] == sum(other in ids[k] for k in having)
    assert counts.gate_K.tolist() == pytest.approx(seen.weights_TK.double().sum(0).tolist())
    assert counts.share_E.sum() == 1
    assert counts.tokens == 50


def test_counts_do_not_depend_on_how_tokens_are_batched() -> None:
    parts = [random_seen(20, seed=1), random_seen(30, seed=2)]
    at_once = Seen(*(torch.cat(pair) for pair in zip(*parts, strict=True)))
    joined = _counted(parts[0]).joined(_counted(parts[1]))
    for counts in (_counted(at_once), joined):
        assert torch.equal(counts.pairs_EE, _counted(*parts).pairs_EE)
        assert torch.equal(counts.first_E, _counted(*parts).first_E)
        assert counts.sums.gate == pytest.approx(_counted(*parts).sums.gate)
        assert counts.uncertainty == pytest.approx(_counted(*parts).uncertainty)


def test_uncertainty_is_one_for_equal_scores_and_zero_for_one() -> None:
    scores_TE = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.0, 0.9, 0.0, 0.0], [2.0, 2.0, 0.0, 0.0]])
    assert normalised_entropy(scores_TE).tolist() == pytest.approx([1, 0, log(2) / log(4)])


def test_tokens_are_followed_while_there_is_room_the_frequent_ones_first() -> None:
    words = TokenCounts(vocabulary=20, experts=2)
    words_T = torch.tensor([5, 7, 7, 5, 7, 9])
    ids_TK = torch.tensor([[0], [1], [1], [1], [0], [0]])
    seen = Seen(ids_TK, ids_TK.float(), None, words_T)
    words.follow_(words_T, most=2)
    words.add_(4, seen)
    words.follow_(words_T, most=3)
    words.add_(4, seen, part=1)
    assert words.layers[4].tolist() == [
        [[1, 2], [1, 1], [0, 0]],  # 7, then 5; there is no room for 9 yet
        [[1, 2], [1, 1], [1, 0]],
    ]
    assert words.passed == 12


@pytest.mark.parametrize("family", ["v2", "v3"])
def test_only_learned_tokens_are_seen(family: str, tiny_config: Callable[..., ModelConfig]) -> None:
    model = random_model(tiny_config(family))
    ids_BS = random_ids(model.config, 2, 8)
    labels_BS = ids_BS.roll(-1, 1)
    labels_BS[:, :3] = IGNORED
    zeros_BS = torch.zeros_like(ids_BS)
    batch = Batch(ids_BS, labels_BS, torch.arange(8).repeat(2, 1), zeros_BS)
    with torch.no_grad():
        loss, seen = see_batch(model, batch)
        ablated = see_batch(model, batch, Ablation(skipped=1))[0]
    assert {layer: len(tokens.ids_TK) for layer, tokens in seen.items()} == {
        "v2": {1: 10, 2: 10},
        "v3": {1: 10, 2: 10, 3: 10},
    }[family]
    assert seen[1].tokens_T is not None
    assert seen[1].tokens_T.tolist() == ids_BS[:, 3:].flatten().tolist()
    assert family == "v2" or seen[3].tokens_T is None  # it sees the tokens after them
    assert loss.next_token != ablated.next_token
