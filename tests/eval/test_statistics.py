"""Errors, intervals and tests, against numbers from other sources."""

import math
import random

import pytest
import torch

from moesaic.eval.statistics import (
    mcnemar,
    mean_difference,
    mean_estimate,
    paired_interval,
    ratio_difference,
    ratio_estimate,
    standard_error,
    wilson,
)


def answers(right: int, wrong: int) -> list[float]:
    return [1.0] * right + [0.0] * wrong


def test_the_error_of_a_mean_is_the_sample_deviation_over_the_root_of_n():
    # 0.7559289 is what R gives for sd(…) / sqrt(8)
    assert standard_error([2, 4, 4, 4, 5, 5, 7, 9]) == pytest.approx(0.7559289, abs=1e-7)


def test_the_error_of_an_accuracy_is_the_one_lm_evaluation_harness_prints():
    # GSM8K, 1319 items, 0.425 right: it prints 0.0136
    found = mean_estimate(answers(561, 758))
    assert found.value == pytest.approx(0.4253, abs=5e-5)
    assert found.stderr == pytest.approx(0.0136, abs=5e-5)


def test_one_item_has_no_error():
    assert standard_error([1.0]) is None
    found = mean_estimate([0.5])
    assert (found.value, found.stderr, found.low, found.high) == (0.5, None, None, None)


def test_groups_of_their_own_difficulty_do_not_count_as_chance():
    values, groups = answers(4, 0) + answers(0, 4), ["easy"] * 4 + ["hard"] * 4
    assert standard_error(values, groups) == 0
    assert standard_error(values) == pytest.approx(0.18898, abs=1e-5)


def test_the_error_of_groups_is_that_of_their_pooled_variance():
    # lm_eval.api.metrics.pooled_sample_stderr of errors 0.2, 0.3, 0.1 and sizes 5, 10, 20
    parts = {"a": ([0, 0, 1, 1, 1], 5), "b": ([0] * 4 + [1] * 6, 10), "c": ([1] * 18 + [0] * 2, 20)}
    values = [float(value) for part, _ in parts.values() for value in part]
    groups = [name for name, (_, size) in parts.items() for _ in range(size)]
    pooled = (4 * 0.3 + 9 * (2.4 / 9) + 19 * (1.8 / 19)) / (35 - 3)
    assert standard_error(values, groups) == pytest.approx(math.sqrt(pooled / 35))


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # scipy.stats.binomtest(successes, n).proportion_ci(method="wilson")
        (0, 10, 0.0, 0.27753279986),
        (10, 10, 0.72246720014, 1.0),
        (81, 263, 0.25528851988, 0.36620957698),
        (561, 1319, 0.39889627690, 0.45218187106),
    ],
)
def test_the_interval_of_a_share_is_wilsons(successes: int, n: int, low: float, high: float):
    assert wilson(successes, n) == pytest.approx((low, high), abs=1e-10)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [  # scipy.stats.binomtest(gained, gained + lost).pvalue
        (0, 0, 1.0),
        (5, 5, 1.0),
        (1, 9, 0.021484375),
        (9, 1, 0.021484375),
        (0, 6, 0.03125),
        (30, 12, 0.007915897334896727),
        (520, 430, 0.0038597074976553887),
    ],
)
def test_mcnemars_test_is_the_two_sided_sign_test_of_discordant_items(
    gained: int, lost: int, p: float
):
    assert mcnemar(gained, lost) == pytest.approx(p, rel=1e-12)


def test_the_paired_interval_is_that_of_bonett_and_price():
    # up = 21/102, down = 11/102: 10/102 ± 1.959964 · sqrt((32/102 - (10/102)²) / 102)
    low, high = paired_interval(20, 10, 100)
    assert (low, high) == pytest.approx((-0.00898106133, 0.20505949270), abs=1e-10)


def test_two_models_that_agree_on_every_item_are_not_known_to_be_equal():
    low, high = paired_interval(0, 0, 50)
    assert low == pytest.approx(-high)
    assert 0.03 < high < 0.08


def test_the_paired_interval_holds_the_true_difference_about_as_often_as_it_says():
    draw = random.Random(0)
    n, up, down, held = 80, 0.12, 0.06, 0
    for _ in range(2000):
        kinds = [draw.random() for _ in range(n)]
        gained, lost = sum(k < up for k in kinds), sum(up <= k < up + down for k in kinds)
        low, high = paired_interval(gained, lost, n)
        held += low <= up - down <= high
    assert 0.94 <= held / 2000 <= 0.97


def test_a_paired_difference_is_surer_than_two_scores_beside_each_other(
    generator: torch.Generator,
):
    base = answers(50, 50)
    model = answers(50, 38) + answers(12, 0)
    found = mean_difference(model, base, [None] * 100, generator)
    assert (found.base, found.difference) == (0.5, pytest.approx(0.12))
    assert found.test == "exact McNemar"
    assert found.p == pytest.approx(2 * 0.5**12)
    assert found.low is not None
    assert found.low > 0
    one, other = mean_estimate(model), mean_estimate(base)
    assert one.low is not None
    assert other.high is not None
    assert one.low < other.high  # the intervals of the two scores overlap


def test_scores_that_are_not_0_and_1_are_compared_by_permutation(generator: torch.Generator):
    base = [0.1 * place for place in range(12)]
    found = mean_difference([value + 0.05 for value in base], base, [None] * 12, generator)
    assert found.test == "paired permutation"
    # all twelve changes are equal: 2 of the 2¹² ways to exchange the models are as far from 0
    assert found.p == pytest.approx(2 / 2**12, abs=5e-4)
    assert found.difference == pytest.approx(0.05)
    same = mean_difference(base, base, [None] * 12, generator)
    assert same.p == 1


def test_a_permutation_p_is_that_of_all_exchanges(generator: torch.Generator):
    changes = [0.9, -0.3, 0.4, 0.2, 0.5, -0.1, 0.7]
    total = sum(changes)
    ways = [
        sum(change * (1 if way >> place & 1 else -1) for place, change in enumerate(changes))
        for way in range(2**7)
    ]
    exact = sum(abs(way) >= total - 1e-9 for way in ways) / 2**7
    found = mean_difference(changes, [0.0] * 7, [None] * 7, generator)
    assert found.p == pytest.approx(exact, abs=0.01)


def nats(per_unit: float, spread: float, n: int, seed: int) -> list[tuple[float, float]]:
    draw = random.Random(seed)
    units = [draw.randint(50, 200) for _ in range(n)]
    return [(-(per_unit + draw.gauss(0, spread)) * size, float(size)) for size in units]


def test_perplexity_is_of_all_units_together_and_not_a_mean_of_items(generator: torch.Generator):
    found = ratio_estimate([(-10.0, 10.0), (-60.0, 20.0)], "weighted_perplexity", generator)
    assert found.value == pytest.approx(math.exp(70 / 30))
    assert ratio_estimate([(-7.0, 2.0)], "bits_per_byte", generator).value == pytest.approx(
        3.5 / math.log(2)
    )
    assert ratio_estimate([(-7.0, 2.0)], "nats_per_unit", generator).value == 3.5


def test_the_bootstrap_of_a_ratio_agrees_with_the_linearised_error(generator: torch.Generator):
    pairs = nats(1.2, 0.3, 300, seed=1)
    mean = -sum(log_p for log_p, _ in pairs) / sum(units for _, units in pairs)
    squares = sum((-log_p - mean * units) ** 2 for log_p, units in pairs)
    linear = math.sqrt(squares * 300 / 299) / sum(units for _, units in pairs)
    found = ratio_estimate(pairs, "nats_per_unit", generator)
    assert found.stderr == pytest.approx(linear, rel=0.05)
    assert found.low is not None
    assert found.high is not None
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * linear, rel=0.08)


def test_one_text_has_no_error(generator: torch.Generator):
    found = ratio_estimate([(-7.0, 2.0)], "weighted_perplexity", generator)
    assert found.stderr is None
    change = ratio_difference([(-7.0, 2.0)], [(-8.0, 2.0)], "bits_per_byte", generator)
    assert change.difference == pytest.approx(-0.5 / math.log(2))
    assert (change.stderr, change.low, change.p) == (None, None, None)


def test_a_lower_loss_on_nearly_every_text_is_told_from_chance(generator: torch.Generator):
    base = nats(1.2, 0.3, 60, seed=2)
    draw = random.Random(3)
    model = [(log_p + draw.gauss(0.02, 0.02) * units, units) for log_p, units in base]
    found = ratio_difference(model, base, "bits_per_byte", generator)
    assert found.difference < 0
    assert found.high is not None
    assert found.high < 0
    assert found.p is not None
    assert found.p < 0.001
    assert ratio_difference(base, base, "bits_per_byte", generator).p == 1


def test_the_same_samples_give_the_same_numbers():
    pairs = nats(2.0, 0.5, 40, seed=4)
    first, again = (
        ratio_estimate(pairs, "weighted_perplexity", torch.Generator().manual_seed(5))
        for _ in range(2)
    )
    assert first == again
