"""Tokens are drawn with the probabilities that were asked for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moesaic.config.infer import GenerateConfig
from moesaic.errors import RequestError
from moesaic.infer.sample import distribution, draw, likeliest, sample, waits

LOGITS = torch.tensor([[2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0, -3.0]])
PLAIN = GenerateConfig(temperature=1.0, top_p=1.0)

logits = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12)


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_without_limits_the_distribution_is_the_softmax() -> None:
    torch.testing.assert_close(distribution(LOGITS, PLAIN), LOGITS.double().softmax(-1))


def test_temperature_divides_the_logits() -> None:
    cool = distribution(LOGITS, PLAIN.changed(temperature=0.5))
    torch.testing.assert_close(cool, (2 * LOGITS.double()).softmax(-1))


@given(logits, st.integers(1, 14), st.floats(0.1, 10))
def test_top_k_keeps_the_k_likeliest(row: list[float], k: int, temperature: float) -> None:
    settings = PLAIN.changed(temperature=temperature)
    full = distribution(torch.tensor([row]), settings)[0]
    cut = distribution(torch.tensor([row]), settings.changed(top_k=k))[0]
    kept = cut > 0
    assert kept.sum() == min(k, len(row))
    assert full[kept].min() >= full[~kept].max() if (~kept).any() else True
    torch.testing.assert_close(cut[kept], full[kept] / full[kept].sum())


@given(logits, st.floats(0.01, 1.0, exclude_max=True))
def test_top_p_keeps_the_fewest_tokens_of_that_probability(row: list[float], p: float) -> None:
    full = distribution(torch.tensor([row]), PLAIN)[0]
    cut = distribution(torch.tensor([row]), PLAIN.changed(top_p=p))[0]
    kept = cut > 0
    assert full[kept].sum() >= p - 1e-12
    assert full[kept].sum() - full[kept].min() < p + 1e-12
    assert full[kept].min() >= full[~kept].max() if (~kept).any() else True
    torch.testing.assert_close(cut.sum(), torch.tensor(1.0, dtype=torch.float64))


@given(logits, st.integers(1, 12), st.floats(0.01, 1.0))
def test_top_p_acts_on_what_top_k_left(row: list[float], k: int, p: float) -> None:
    once = distribution(torch.tensor([row]), PLAIN.changed(top_k=k, top_p=p))
    first = distribution(torch.tensor([row]), PLAIN.changed(top_k=k))
    torch.testing.assert_close(once, distribution(first.log(), PLAIN.changed(top_p=p)))


@given(logits)
def test_temperature_zero_is_top_k_of_one(row: list[float]) -> None:
    greedy = sample(torch.tensor([row]), PLAIN.changed(temperature=0.0), seeded(0))
    one = distribution(torch.tensor([row]), PLAIN.changed(top_k=1))
    assert row[int(greedy)] == max(row)
    assert one[0, int(greedy)] == 1


def test_of_equally_likely_tokens_the_first_are_kept() -> None:
    probs = distribution(torch.zeros(1, 5), PLAIN.changed(top_k=2))
    assert probs.tolist() == [[0.5, 0.5, 0, 0, 0]]


def test_a_temperature_near_zero_does_not_overflow() -> None:
    probs = distribution(LOGITS, PLAIN.changed(temperature=1e-300))
    assert probs[0, 0] == 1


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    n = 20_000
    probs = distribution(LOGITS, PLAIN)
    [shared] = seeded(5)
    drawn = draw(probs.expand(n, -1), [shared] * n)
    expected = n * probs[0]
    chi_square = ((drawn.bincount(minlength=8) - expected) ** 2 / expected).sum()
    assert chi_square < 24.32  # 7 degrees of freedom, p = 0.001


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    probs = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]], dtype=torch.float64)
    [shared] = seeded(0)
    assert set(draw(probs.expand(1000, -1), [shared] * 1000).tolist()) == {1, 3}


def test_a_sequence_is_drawn_from_its_own_generator() -> None:
    together = sample(LOGITS.expand(3, -1), PLAIN, seeded(1, 2, 3))
    alone = sample(LOGITS, PLAIN, seeded(2))
    assert together[1] == alone[0]


def test_each_token_takes_one_random_number() -> None:
    [first], [second] = seeded(9), seeded(9)
    sample(LOGITS, PLAIN, [first])
    torch.randint(2**63 - 1, (1,), generator=second)
    assert first.get_state().equal(second.get_state())


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_distributions_that_are_alike_give_the_same_token_for_the_same_number(
    temperature: float, generator: torch.Generator
) -> None:
    """As often as is promised at least, within five standard errors, and rarely more often than
    any way of drawing could."""
    logits_BV = torch.randn(2, 50, generator=generator)
    near_BV = logits_BV + 0.3 * torch.randn(2, 50, generator=generator)
    settings, n = PLAIN.changed(temperature=temperature), 4000
    for one_V, other_V in zip(
        distribution(logits_BV, settings), distribution(near_BV, settings), strict=True
    ):
        first, second = ([torch.Generator().manual_seed(3)] * n for _ in range(2))
        same = draw(one_V.expand(n, -1), first) == draw(other_V.expand(n, -1), second)
        share, most = float(same.double().mean()), float(torch.minimum(one_V, other_V).sum())
        error = 5 * (0.25 / n) ** 0.5
        assert (most / (2 - most)) - error < share < most + error  # 1 - d is what they share


def test_random_bits_are_those_of_the_published_code() -> None:
    """The first outputs of splitmix64.c from the state 1234567."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    uniform = (-waits(torch.tensor([1234567]), 5)).exp()
    assert uniform.tolist() == pytest.approx([bits / 2**64 for bits in published], rel=1e-12)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(wrong: float) -> None:
    with pytest.raises(RequestError) as error:
        sample(torch.tensor([[0.0, wrong]]), PLAIN, seeded(0))
    assert str(error.value) == (
        "the model's logits are not finite in float32; load it in float32, or run "
        "`moesaic check` on its folder"
    )


@given(st.lists(st.lists(st.floats(-20, 20, width=32), min_size=4, max_size=4), min_size=1))
def test_the_likeliest_token_of_each_row_is_its_first_highest(rows: list[list[float]]) -> None:
    assert likeliest(torch.tensor(rows)) == [row.index(max(row)) for row in rows]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_the_likeliest_of_logits_that_are_not_finite_is_refused(wrong: float) -> None:
    with pytest.raises(RequestError, match="not finite in float32"):
        likeliest(torch.tensor([[1.0, 2.0, 3.0], [1.0, wrong, 3.0]]))
