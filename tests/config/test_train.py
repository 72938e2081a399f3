"""The settings of a run, and the mistakes they refuse."""

from typing import Any

import pytest

from moesaic.config.model import ModelConfig
from moesaic.config.presets import get_preset
from moesaic.config.train import TrainConfig
from moesaic.errors import ConfigError


def settings(**changes: Any) -> TrainConfig:
    return TrainConfig.parse(
        {
            "folder": "run",
            "model": "tiny",
            "steps": 10,
            "batch": {"rows": 4},
            "schedule": {"learning_rate": 1e-2},
            "data": {"seq_len": 12, "sources": [{"path": "corpus:math"}]},
            **changes,
        }
    )


def refusal(**changes: Any) -> str:
    with pytest.raises(ConfigError) as error:
        settings(**changes)
    return str(error.value)


def test_nothing_balances_unless_asked_for():
    balance = settings().balance
    assert all(value is None for _, value in balance)


def test_settings_survive_being_written_and_read():
    config = settings(model={"preset": "tiny-v3", "num_hidden_layers": 2})
    assert TrainConfig.parse(config.model_dump(mode="json")) == config


def test_a_model_is_a_name_a_table_or_what_differs_from_a_preset():
    table = get_preset("tiny-v3").model_dump()
    assert settings(model=table).model == get_preset("tiny-v3")
    changed = settings(model={"preset": "tiny-v3", "num_hidden_layers": 2}).model
    assert changed == get_preset("tiny-v3").changed(num_hidden_layers=2)
    assert isinstance(changed, ModelConfig)


def test_a_wrong_key_of_a_model_is_named_with_the_nearest_one():
    message = refusal(model={"preset": "tiny", "hiden_size": 64})
    assert "hiden_size is not a setting; did you mean 'hidden_size'?" in message
    assert "'tinny' is not a preset; did you mean 'tiny'" in refusal(model={"preset": "tinny"})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"batch": {"rows": 6, "micro_rows": 4}},
            "rows=6 is not a multiple of micro_rows=4; change one of them",
        ),
        ({"batch": {"rows": 2.5}}, "rows=2.5 is no number of sequences; give 1 or more"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "optimizer.betas.1=1.0 is not allowed"),
        ({"precision": "float8"}, "precision='float8' is not one of"),
        (
            {"evaluation": {"every_steps": 1, "rows": 1, "domains": {"a": {"path": "x"}}}},
            "domain 'a' has split='train', documents that are learned; set split to 'held_out'",
        ),
        (
            {"balance": {"devices": 4}},
            "devices=4 has no meaning without device_loss, communication_loss or dropping",
        ),
    ],
)
def test_a_contradiction_is_refused_with_the_fix(changes: dict[str, Any], told: str):
    assert told in refusal(**changes)


@pytest.mark.parametrize(
    ("preset", "balance", "told"),
    [
        ("tiny-v2", {"bias_speed": 0.001}, "choose topk_method='noaux_tc', or balance by"),
        ("deepseek-moe-2b-dense", {"expert_loss": 0.01}, "no meaning for a dense model; remove it"),
        ("deepseek-moe-2b-hash", {"expert_loss": 0.01}, "topk_method='hash' learns no scores"),
        ("tiny-v2", {"device_loss": 0.05}, "balance.devices is missing, and the model's experts"),
        ("tiny-v2", {"dropping": {}}, "balance.devices is missing, and the model's experts"),
        (
            "tiny-v2",
            {"communication_loss": 0.05, "devices": 7},
            "balance.devices=7 does not divide n_routed_experts=64; give a divisor",
        ),
    ],
)
def test_balance_that_the_model_has_nothing_for_is_refused(
    preset: str, balance: dict[str, Any], told: str
):
    with pytest.raises(ConfigError) as error:
        settings(balance=balance).balance.check(get_preset(preset))
    assert told in str(error.value)


def test_devices_are_the_models_groups_unless_given():
    assert settings().balance.devices_of(get_preset("deepseek-v2")) == 8
    given = settings(balance={"device_loss": 0.05, "devices": 4}).balance
    assert given.devices_of(get_preset("deepseek-v2")) == 4
