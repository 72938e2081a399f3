"""How far experts are for one domain, and words for one expert."""

from math import log2

import pytest
import torch
from analyse.raw import random_seen

from moesaic.analyse.specialise import favourite, foretold, information, specialisation


def _loads(*tilts: float, tokens: int = 400, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts of random domains, and their tokens."""
    loads = [
        random_seen(tokens, seed + place, tilt).ids_TK.flatten().bincount(minlength=8)
        for place, tilt in enumerate(tilts)
    ]
    return torch.stack(loads), torch.full((len(tilts),), tokens)


def test_information_is_that_of_the_joint_distribution() -> None:
    counts, tokens = _loads(0.0, 0.3, -0.2)
    joint = [[count / (3 * 400) / 3 for count in row] for row in counts.tolist()]
    bits = sum(
        p * log2(p / (sum(row) * sum(each[expert] for each in joint)))
        for row in joint
        for expert, p in enumerate(row)
        if p
    )
    assert information(counts, tokens, chosen=3).bits == pytest.approx(bits)


def test_a_domain_that_says_all_is_worth_the_number_of_domains() -> None:
    counts = torch.tensor([[6, 6, 0, 0], [0, 0, 6, 6]])
    assert information(counts, torch.tensor([6, 6]), chosen=2).bits == pytest.approx(1)


def test_domains_that_are_alike_tell_nothing_once_chance_is_taken_away() -> None:
    found = [information(*_loads(0.2, 0.2, tokens=60, seed=2 * n), chosen=3) for n in range(200)]
    counted = sum(one.bits for one in found) / 200
    corrected = sum(one.corrected for one in found) / 200
    assert counted > 0.008
    assert abs(corrected) < 0.1 * counted


def test_domains_count_alike_whatever_their_size() -> None:
    counts, tokens = _loads(0.0, 0.4)
    times = torch.tensor([5, 1])
    larger = information(counts * times[:, None], tokens * times, chosen=3)
    assert larger.bits == pytest.approx(information(counts, tokens, chosen=3).bits)


def test_an_expert_for_every_domain_alike_is_not_specialised_and_one_for_one_is() -> None:
    shares = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.5, 0.0, 0.0, 0.5]], dtype=torch.float64)
    assert specialisation(shares) == [0, 1, None, 1]
    between = torch.tensor([[0.3, 0.7], [0.1, 0.9]], dtype=torch.float64)
    entropy = -(0.75 * log2(0.75) + 0.25 * log2(0.25))
    assert specialisation(between)[0] == pytest.approx(1 - entropy)


def test_of_one_domain_no_expert_can_be_told_to_be_for_it() -> None:
    assert specialisation(torch.tensor([[0.5, 0.5]])) == [None, None]


def test_a_word_is_for_the_expert_it_goes_to_most() -> None:
    counts = torch.tensor([[8, 0, 0], [6, 6, 0], [0, 0, 2]])  # the last one is too rare
    assert favourite(counts) == pytest.approx((1 + 0.5) / 2)
    assert favourite(counts[2:]) is None


def test_words_foretell_in_one_half_what_they_learned_in_the_other() -> None:
    one = torch.tensor([[3, 1], [0, 2], [1, 0]])
    other = torch.tensor([[4, 0], [2, 1], [0, 0]])
    # by the first: 4 of 4, 1 of 3; by the second: 3 of 4, 0 of 2; the third word is in one only
    assert foretold(torch.stack([one, other])) == pytest.approx(8 / 13)
    assert foretold(torch.stack([one, torch.zeros_like(one)])) is None


def test_words_that_go_anywhere_foretell_no_more_than_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(0, 2 * 500 * 8, (4000,), generator=generator)
    halves = places.bincount(minlength=2 * 500 * 8).view(2, 500, 8)
    assert foretold(halves) == pytest.approx(1 / 8, abs=0.02)
    assert (favourite(halves.sum(0), at_least=1) or 0) > 0.3  # which is all chance
