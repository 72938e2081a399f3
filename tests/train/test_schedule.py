"""Schedules of the published runs, against the numbers their reports print."""

import pytest

from moesaic.config.schedule import Curve, ScheduleConfig
from moesaic.errors import ConfigError
from moesaic.train.schedule import Position, learning_rate, value_at


def at_step(step: int, steps: int = 1000) -> Position:
    return Position(step=step, tokens=0, steps=steps)


def at_tokens(tokens: float) -> Position:
    return Position(step=10**6, tokens=int(tokens), steps=10**7)


DEEPSEEK_MOE_16B = ScheduleConfig.parse(
    {
        "warmup_steps": 2000,
        "learning_rate": {
            "start": 4.2e-4,
            "changes": [{"at": "80%", "times": 0.316}, {"at": "90%", "times": 0.316}],
        },
    }
)
DEEPSEEK_V3 = ScheduleConfig.parse(
    {
        "warmup_steps": 2000,
        "learning_rate": {
            "start": 2.2e-4,
            "changes": [
                {"at": "10T tokens", "until": "14.3T tokens", "to": 2.2e-5, "shape": "cosine"},
                {"at": "14.633T tokens", "to": 7.3e-6},
            ],
        },
    }
)


def test_a_plain_number_is_a_value_that_stays():
    curve = Curve.model_validate(0.3)
    assert value_at(curve, at_step(0)) == 0.3
    assert value_at(curve, at_step(999)) == 0.3


def test_warm_up_rises_in_equal_parts_and_never_has_rate_zero():
    schedule = ScheduleConfig.parse({"learning_rate": 1e-3, "warmup_steps": 4})
    rates = [learning_rate(schedule, at_step(step)) for step in range(6)]
    assert rates == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3])


def test_deepseek_moe_16b_falls_at_80_and_90_percent_of_the_steps():
    def rate(step: int) -> float:
        return learning_rate(DEEPSEEK_MOE_16B, at_step(step, steps=106_449))

    assert rate(999) == pytest.approx(2.1e-4)
    assert rate(2000) == rate(85_159) == 4.2e-4
    assert rate(85_160) == pytest.approx(1.3272e-4)
    assert rate(95_805) == pytest.approx(4.193952e-5)


def test_deepseek_v3_is_constant_then_cosine_then_constant_then_drops():
    def rate(tokens: float) -> float:
        return learning_rate(DEEPSEEK_V3, at_tokens(tokens))

    assert rate(9.99e12) == 2.2e-4
    assert rate(12.15e12) == pytest.approx((2.2e-4 + 2.2e-5) / 2)  # half of the cosine
    assert rate(10e12 + 4.3e12 / 3) == pytest.approx(2.2e-4 - 1.98e-4 / 4)  # cos 60° = 1/2
    assert rate(14.3e12) == 2.2e-5
    assert rate(14.632e12) == 2.2e-5
    assert rate(14.634e12) == 7.3e-6


def test_supervised_fine_tuning_falls_from_5e6_to_1e6_along_a_cosine():
    schedule = ScheduleConfig.parse(
        {
            "learning_rate": {
                "start": 5e-6,
                "changes": [{"at": "0%", "until": "100%", "to": 1e-6, "shape": "cosine"}],
            }
        }
    )
    assert learning_rate(schedule, at_step(0)) == 5e-6
    assert learning_rate(schedule, at_step(500)) == pytest.approx(3e-6)
    assert learning_rate(schedule, at_step(1000)) == 1e-6


def test_deepseek_v3_batch_grows_in_a_line_over_the_first_469_billion_tokens():
    change = {"at": "0 tokens", "until": "469B tokens", "to": 15360.0}
    curve = Curve.parse({"start": 3072.0, "changes": [change]})
    assert value_at(curve, at_tokens(0)) == 3072
    assert value_at(curve, at_tokens(469e9 / 4)) == pytest.approx(3072 + 12288 / 4)
    assert value_at(curve, at_tokens(1e12)) == 15360


def test_deepseek_v3_bias_speed_and_prediction_weight_switch_at_once():
    speed = Curve.parse({"start": 0.001, "changes": [{"at": "14.3T tokens", "to": 0.0}]})
    weight = Curve.parse({"start": 0.3, "changes": [{"at": "10T tokens", "to": 0.1}]})
    assert [value_at(speed, at_tokens(t)) for t in (14.2e12, 14.3e12)] == [0.001, 0.0]
    assert [value_at(weight, at_tokens(t)) for t in (9.9e12, 10e12)] == [0.3, 0.1]


def test_a_change_that_has_not_begun_keeps_later_ones_waiting():
    changes = [{"at": "10 steps", "until": "20 steps", "to": 2.0}, {"at": "0 tokens", "to": 5.0}]
    curve = Curve.parse({"start": 1.0, "changes": changes})
    assert [value_at(curve, at_step(step)) for step in (0, 15, 20)] == [1.0, 1.5, 5.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"at": "soon", "to": 1.0}, "'soon': not a moment of a run; write it as '2000 steps'"),
        ({"at": "120%", "to": 1.0}, "'120%': later than the end of the run; give 100% or less"),
        ({"at": "5 steps"}, "a change needs either 'to' or 'times'; give one of them"),
        (
            {"at": "5 steps", "to": 1.0, "shape": "cosine"},
            "shape='cosine' needs 'until'; add it, or remove the shape",
        ),
        (
            {"at": "5 steps", "until": "9k tokens", "to": 1.0},
            "at='5 steps' and until='9k tokens' differ in unit; give both in steps",
        ),
        (
            {"at": "5 steps", "until": "5 steps", "to": 1.0},
            "until='5 steps' is not after at='5 steps'; swap or move them",
        ),
    ],
)
def test_a_change_that_makes_no_sense_is_refused_with_the_fix(change, message):
    with pytest.raises(ConfigError) as error:
        Curve.parse({"start": 1.0, "changes": [change]})
    assert message in str(error.value)


def test_changes_out_of_order_are_refused():
    changes = [{"at": "90%", "to": 1.0}, {"at": "80%", "to": 2.0}]
    with pytest.raises(ConfigError) as error:
        Curve.parse({"start": 1.0, "changes": changes})
    assert "put the changes in order of time" in str(error.value)
