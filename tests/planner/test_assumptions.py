"""What a plan takes for granted."""

import pytest

from moesaic.config.load import parse_changes
from moesaic.config.presets import DEEPSEEK_MOE_2B, DEEPSEEK_V3
from moesaic.errors import ConfigError
from moesaic.planner.assumptions import Assumptions


def test_lengths_are_4096_or_as_many_as_the_model_takes():
    assert Assumptions().lengths(DEEPSEEK_V3) == (4096, 4096)
    assert Assumptions().lengths(DEEPSEEK_MOE_2B) == (2048, 2048)
    assert Assumptions(sequence=100, context=200).lengths(DEEPSEEK_V3) == (100, 200)


@pytest.mark.parametrize("name", ["sequence", "context"])
def test_a_length_the_model_cannot_take_is_refused(name: str):
    assumptions = parse_changes(Assumptions, [f"{name}=4096"])
    with pytest.raises(ConfigError, match=f"{name}=4096 is longer .* max_position_embeddings=2048"):
        assumptions.lengths(DEEPSEEK_MOE_2B)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sequences_=2", "sequences_ is not a setting; did you mean 'sequences'"),
        ("mfu=1.5", "mfu=1.5 is not allowed; it should be less than or equal to 1"),
        ("precision=fp32", "precision='fp32' is not one of 'bfloat16', .*'mixed' or 'float32'"),
        ("batch=0", "batch=0 is not allowed; it should be greater than 0"),
    ],
)
def test_a_wrong_assumption_is_refused(change: str, message: str):
    with pytest.raises(ConfigError, match=message):
        parse_changes(Assumptions, [change])
