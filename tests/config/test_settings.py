from typing import Literal

import pytest
from pydantic import PositiveFloat, ValidationError, field_validator, model_validator

from moesaic.config.settings import Settings
from moesaic.errors import ConfigError


class Constant(Settings):
    kind: Literal["constant"] = "constant"


class Cosine(Settings):
    kind: Literal["cosine"] = "cosine"
    final_share: float = 0.1

    @field_validator("final_share")
    @classmethod
    def _is_a_share(cls, value: float) -> float:
        if not 0 <= value <= 1:
            raise ValueError("no share; give a number from 0 to 1")
        return value


class Schedule(Settings):
    peak_lr: PositiveFloat
    warmup_steps: int = 0
    decay: Constant | Cosine = Constant()
    stages: tuple[Cosine, ...] = ()

    @model_validator(mode="after")
    def _warm_up_fits(self) -> "Schedule":
        if self.warmup_steps == 13:
            raise ValueError("warmup_steps=13 brings bad luck; use 12")
        return self


class Run(Settings):
    steps: int
    schedule: Schedule
    ids: int | tuple[int, ...] = 0


GOOD = {"steps": 3, "schedule": {"peak_lr": 0.1}}


def message(**changes: object) -> str:
    with pytest.raises(ConfigError) as caught:
        Run.parse({**GOOD, **changes}, "run.toml")
    return str(caught.value)


def test_settings_are_read_and_frozen():
    run = Run.parse(GOOD)
    assert run.schedule.peak_lr == 0.1
    with pytest.raises(ValidationError, match="frozen"):
        run.steps = 4


def test_an_unknown_setting_names_the_nearest_one():
    assert message(step=3) == "run.toml: step is not a setting; did you mean 'steps'?"


def test_an_unknown_setting_like_no_other_is_to_be_removed():
    assert message(colour="red") == "run.toml: colour is not a setting; remove it"


def test_an_unknown_setting_of_a_group_is_named_with_its_group():
    text = message(schedule={"peak_lr": 0.1, "warmup": 5})
    assert text == (
        "run.toml: schedule.warmup is not a setting; did you mean 'schedule.warmup_steps'?"
    )


def test_an_unknown_setting_in_a_list_is_named_with_its_place():
    text = message(schedule={"peak_lr": 0.1, "stages": ({"final_shar": 0.5},)})
    assert "schedule.stages.0.final_shar is not a setting" in text
    assert "did you mean 'schedule.stages.0.final_share'?" in text


def test_a_missing_setting_is_named():
    assert message(schedule={}) == "run.toml: schedule.peak_lr is missing; give it a value"


def test_every_mistake_has_its_line():
    lines = message(steps="3", schedule={"peak_lr": -1.0}).splitlines()
    assert lines == [
        "run.toml: steps='3' is not allowed; it should be a valid integer",
        "run.toml: schedule.peak_lr=-1.0 is not allowed; it should be greater than 0",
    ]


@pytest.mark.parametrize("value", [True, 3.0, "3"])
def test_types_are_not_guessed(value: object):
    assert f"steps={value!r} is not allowed; it should be a valid integer" in message(steps=value)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_are_finite(value: float):
    text = message(schedule={"peak_lr": value})
    assert f"schedule.peak_lr={value} is not allowed; it should be a finite number" in text


def test_a_choice_names_its_values_and_the_nearest():
    with pytest.raises(ConfigError) as caught:
        Cosine.parse({"kind": "cosin"})
    assert str(caught.value) == "kind='cosin' is not one of 'cosine'; did you mean 'cosine'?"


def test_a_setting_of_several_types_is_named_as_it_is_written():
    assert message(ids="x") == (
        "run.toml: ids='x' is not allowed; it should be a valid integer or a list, as "
        '["a", "b"] (within single quotes where a shell reads it)'
    )
    assert message(ids=(1, "x")) == (
        "run.toml: ids.1='x' is not allowed; it should be a valid integer"
    )


def test_a_rule_broken_by_one_setting_shows_its_value():
    text = message(schedule={"peak_lr": 0.1, "stages": ({"final_share": 2.0},)})
    assert text == (
        "run.toml: schedule.stages.0.final_share=2.0: no share; give a number from 0 to 1"
    )


def test_a_rule_broken_by_a_group_is_not_followed_by_the_whole_group():
    text = message(schedule={"peak_lr": 0.1, "warmup_steps": 13})
    assert text == "run.toml: schedule: warmup_steps=13 brings bad luck; use 12"


def test_changed_settings_are_checked_again():
    run = Run.parse(GOOD)
    assert run.changed(steps=5).steps == 5
    assert run.steps == 3
    with pytest.raises(ConfigError, match="steps='many' is not allowed"):
        run.changed(steps="many")
