import torch
from hypothesis import given
from hypothesis import strategies as st

from moesaic.data.fim import FimTokens, fill_in_middle

TOKENS = FimTokens(begin=3, hole=4, end=5)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.text(), st.integers(0, 2**32))
def test_the_text_can_be_recovered(text: str, seed: int):
    begin, prefix, hole, suffix, end, middle = fill_in_middle(text, 1.0, TOKENS, seeded(seed))
    assert (begin, hole, end) == (3, 4, 5)
    assert f"{prefix}{middle}{suffix}" == text


@given(st.text(), st.integers(0, 2**32))
def test_a_rate_of_zero_leaves_every_text_as_it_is(text: str, seed: int):
    assert fill_in_middle(text, 0.0, TOKENS, seeded(seed)) == (text,)


def test_the_rate_is_the_share_of_texts_rearranged():
    generator = seeded(0)
    pieces = [fill_in_middle("some text", 0.1, TOKENS, generator) for _ in range(4000)]
    assert 320 < sum(len(parts) > 1 for parts in pieces) < 480  # 400 ± 4 standard deviations


def test_cuts_fall_everywhere_in_a_text():
    generator = seeded(0)
    middles = {fill_in_middle("abcd", 1.0, TOKENS, generator)[5] for _ in range(400)}
    assert middles == {"abcd"[i:j] for i in range(5) for j in range(i, 5)}


def test_the_same_generator_cuts_the_same_way():
    assert fill_in_middle("some text", 1.0, TOKENS, seeded(7)) == fill_in_middle(
        "some text", 1.0, TOKENS, seeded(7)
    )
