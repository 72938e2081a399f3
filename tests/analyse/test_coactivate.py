"""Which experts are chosen together."""

from itertools import combinations

import pytest
import torch
from analyse.raw import CHOSEN, EXPERTS, random_seen

from moesaic.analyse.coactivate import closest, even_lift, lift, strongest, together, top_pairs
from moesaic.analyse.counts import LayerCounts


def _pairs(ids: list[list[int]], experts: int) -> torch.Tensor:
    pairs_EE = torch.zeros(experts, experts, dtype=torch.int64)
    for row in ids:
        for i in row:
            for j in row:
                pairs_EE[i, j] += 1
    return pairs_EE


def test_shares_and_lifts_are_those_of_the_raw_choices() -> None:
    seen = random_seen(60, seed=3)
    counts = LayerCounts.zero(EXPERTS, CHOSEN)
    counts.add_(seen)
    rows = [set(row) for row in seen.ids_TK.tolist()]
    given_EE, lift_EE = together(counts.pairs_EE), lift(counts.pairs_EE, 60)
    for i, j in combinations(range(EXPERTS), 2):
        both, one, other = (sum(part <= row for row in rows) for part in ({i, j}, {i}, {j}))
        assert given_EE[i, j].item() == pytest.approx(both / one)
        assert lift_EE[i, j].item() == pytest.approx(both * 60 / (one * other))


def test_the_pairs_told_are_those_furthest_beyond_chance() -> None:
    rows = [[0, 1]] * 4 + [[2, 3]] * 2 + [[4, 5]] + [[0, 2], [6, 7]] * 3
    found = top_pairs(_pairs(rows, 8), len(rows), count=3)
    assert [pair.experts for pair in found] == [(6, 7), (0, 1), (2, 3)]
    assert [pair.tokens for pair in found] == [3, 4, 2]
    assert (found[1].given_first, found[1].given_second) == pytest.approx((4 / 7, 1))
    assert found[1].lift == pytest.approx(4 * 13 / (7 * 4))


def test_no_pair_is_told_that_is_not_beyond_chance() -> None:
    assert top_pairs(_pairs([[0], [1], [2]], 3), 3, count=5) == []


def test_every_pair_has_the_even_lift_where_all_sets_are_equally_likely() -> None:
    rows = [list(of) for of in combinations(range(6), 3)]
    lift_EE = lift(_pairs(rows, 6), len(rows))
    assert lift_EE[0, 5].item() == lift_EE[2, 3].item() == pytest.approx(even_lift(6, 3))
    assert strongest(_pairs(rows, 6)) == pytest.approx(2 / 5)  # (K - 1) / (E - 1)


def test_companions_count_where_there_are_any() -> None:
    pairs_EE = _pairs([[0, 1]] * 3 + [[0, 2]], 5)
    assert strongest(pairs_EE) == pytest.approx((3 / 4 + 1 + 1) / 3)
    assert closest(pairs_EE, 2) == [1, 2]
    assert strongest(torch.zeros(5, 5, dtype=torch.int64)) == 0
