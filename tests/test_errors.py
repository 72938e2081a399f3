import pytest

from moesaic import errors
from moesaic.errors import MoesaicError, suggest


@pytest.mark.parametrize(
    "name",
    [
        "CheckpointError",
        "ConfigError",
        "DataError",
        "RequestError",
        "ShardError",
        "TrainingError",
    ],
)
def test_every_kind_can_be_caught_at_once(name: str):
    kind = getattr(errors, name)
    with pytest.raises(MoesaicError, match="what to do"):
        raise kind("what to do")


def test_the_nearest_known_name_is_suggested():
    assert suggest("warmup", ["warmup_steps", "peak_lr"]) == "; did you mean 'warmup_steps'?"


def test_nothing_is_suggested_for_a_name_like_no_other():
    assert suggest("colour", ["warmup_steps", "peak_lr"]) == ""
