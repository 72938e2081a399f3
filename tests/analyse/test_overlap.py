"""How alike two loads are."""

from math import log2, sqrt

import pytest
import torch

from moesaic.analyse.overlap import busiest, by_chance, divergence, overlap


def test_the_same_load_overlaps_in_everything() -> None:
    load_E = torch.tensor([4, 3, 2, 1])
    assert overlap(load_E, 7 * load_E, top=2) == pytest.approx((2, 1, 1, 0))


def test_loads_without_a_common_expert_overlap_in_nothing() -> None:
    one_E, other_E = torch.tensor([4, 3, 0, 0]), torch.tensor([0, 0, 5, 1])
    assert overlap(one_E, other_E, top=3) == pytest.approx((0, 0, 0, 1))


def test_measures_are_those_of_their_formulas() -> None:
    one_E, other_E = torch.tensor([6, 3, 1, 0]), torch.tensor([1, 6, 0, 3])
    found = overlap(one_E, other_E, top=2)
    assert (found.shared, found.jaccard) == (1, 1 / 3)
    assert found.cosine == pytest.approx((6 + 18) / sqrt(46 * 46))
    pairs = list(zip([0.6, 0.3, 0.1, 0], [0.1, 0.6, 0, 0.3], strict=True))
    parts = [p * log2(2 * p / (p + q)) for pair in pairs for p, q in (pair, pair[::-1]) if p]
    assert found.divergence == pytest.approx(sum(parts) / 2)
    assert divergence(other_E, one_E) == pytest.approx(found.divergence)


def test_an_expert_that_nobody_chose_is_not_busy() -> None:
    assert busiest(torch.tensor([0, 2, 0, 2]), top=3) == {1, 3}
    assert busiest(torch.tensor([2, 2, 2, 2]), top=2) == {0, 1}


def test_by_chance_as_many_are_shared_as_drawn_cards() -> None:
    assert by_chance(64, 8) == 1
    assert by_chance(4, 8) == 4
