"""An interval says what a few values say of their mean, and no more."""

import pytest

from moesaic.report.estimate import Estimate, estimate


def test_the_interval_of_three_seeds_is_students():
    found = estimate([1.0, 2.0, 3.0])
    assert found.value == 2.0
    assert found.half == pytest.approx(4.303 * 1.0 / 3**0.5)
    assert found.n == 3


def test_one_value_has_no_interval():
    assert estimate([1.5]) == Estimate(1.5)
    assert Estimate(1.5).is_zero is None


def test_many_values_have_the_normal_interval():
    values = [float(n % 2) for n in range(400)]
    assert estimate(values).half == pytest.approx(1.96 * 0.5 / 20, rel=0.01)


@pytest.mark.parametrize(
    ("found", "higher", "finding"),
    [
        (Estimate(0.1, -0.1, 0.3), True, "unclear"),
        (Estimate(0.1, 0.05, 0.3), True, "better"),
        (Estimate(0.1, 0.05, 0.3), False, "worse"),
        (Estimate(-0.1, -0.3, -0.05), False, "better"),
        (Estimate(0.1), True, "unknown"),
        (Estimate(0.1, 0.0, 0.3), True, "unclear"),
    ],
)
def test_an_interval_that_holds_zero_tells_nothing(found: Estimate, higher: bool, finding: str):
    assert found.finding(higher) == finding
