"""What is switched off, and the losses that are told of it."""

from collections.abc import Callable
from math import sqrt
from typing import Any

import pytest
import torch
from models import random_ids, random_model

from moesaic.analyse.ablate import Ablations, Experiments, mean_rise, pooled
from moesaic.config.analyse import AblationConfig
from moesaic.config.model import ModelConfig
from moesaic.config.presets import get_preset
from moesaic.data.batch import Batch
from moesaic.errors import ConfigError
from moesaic.model.ablation import Ablation
from moesaic.model.transformer import Transformer

Config = Callable[..., ModelConfig]


def _tried(config: ModelConfig, **asked: Any) -> dict[str, list[Ablation]]:
    found: dict[str, list[Ablation]] = {}
    for variant in Experiments.of(config, AblationConfig.parse(asked)).variants:
        found.setdefault(variant.experiment, []).append(variant.ablation)
    return found


def test_what_the_paper_switched_off_is_switched_off() -> None:
    tried = _tried(get_preset("deepseek-moe-2b"))
    assert tried["shared"] == [Ablation(chosen=8, shared=False), Ablation(shared=False)]
    assert tried["disabled"] == [Ablation(skipped=skipped) for skipped in (4, 8, 12, 16)]
    assert tried["chosen"] == [Ablation(chosen=chosen) for chosen in (1, 2, 3, 4, 5, 6, 8)]


@pytest.mark.parametrize(
    ("baseline", "tried", "left_out"),
    [
        ("dense", [], {"shared", "disabled", "chosen"}),
        ("hash", [], {"shared", "disabled", "chosen"}),
        ("switch", ["disabled"] * 4 + ["chosen"], {"shared"}),
        ("gshard", ["disabled"] * 4 + ["chosen"] * 2, {"shared"}),
    ],
)
def test_baselines_are_tried_as_far_as_they_have_the_parts(
    baseline: str, tried: list[str], left_out: set[str]
) -> None:
    config = get_preset(f"deepseek-moe-2b-{baseline}")
    found = Experiments.of(config, AblationConfig())
    assert [variant.experiment for variant in found.variants] == tried
    assert set(found.left_out) == left_out


def test_shares_that_are_the_same_number_of_experts_are_tried_once(tiny_config: Config) -> None:
    assert _tried(tiny_config("v1"))["disabled"] == [Ablation(skipped=1), Ablation(skipped=2)]


def test_more_experts_per_token_than_there_are_is_an_error(tiny_config: Config) -> None:
    with pytest.raises(ConfigError, match="leaves 8 of 8 experts, a token goes to 9; lower one"):
        _tried(tiny_config("v1"), chosen=[2, 9])


def _batch(model: Transformer, seed: int) -> Batch:
    ids_BS = random_ids(model.config, 2, 9, seed=seed)
    zeros_BS = torch.zeros_like(ids_BS)
    return Batch(ids_BS, ids_BS.roll(-1, 1), torch.arange(9).repeat(2, 1), zeros_BS)


@torch.no_grad()
def _loss(model: Transformer, batch: Batch, ablation: Ablation | None = None) -> float:
    rows = (batch.ids_BS, batch.labels_BS, batch.positions_BS, batch.documents_BS)
    return model.loss(*rows, ablation=ablation).next_token.item() / batch.learned


@torch.no_grad()
def test_a_point_is_the_mean_loss_of_its_batches(tiny_config: Config) -> None:
    model = random_model(tiny_config("v1"))
    ablations = Ablations(model, AblationConfig(tokens=30, disabled=(0.25,), chosen=(1,)))
    batches = {"one": [_batch(model, 0), _batch(model, 1)], "two": [_batch(model, 2)]}
    for domain, of_domain in batches.items():
        for batch in of_domain:
            assert ablations.wants(domain)
            ablations.add_(domain, batch, _loss(model, batch) * batch.learned)
    assert not ablations.wants("one")
    found = ablations.to_json()
    assert found["tokens"] == 54

    (natural, point), skipping = found["disabled"], Ablation(skipped=2)
    losses = [_loss(model, batch, skipping) for batch in batches["one"]]
    usual = [_loss(model, batch) for batch in batches["one"]]
    assert (point["experts"], point["ratio"], point["chosen"], point["shared"]) == (
        2,
        0.25,
        3,
        True,
    )
    one = point["domains"]["one"]
    assert one["loss"] == pytest.approx(sum(losses) / 2)
    assert one["rise"] == pytest.approx(sum(losses) / 2 - sum(usual) / 2)
    apart = abs((losses[0] - usual[0]) - (losses[1] - usual[1]))
    assert one["rise_stderr"] == pytest.approx(apart / 2, rel=1e-4)  # of two values
    assert point["domains"]["two"]["rise_stderr"] is None
    assert point["rise_stderr"] is None
    assert natural == found["natural"]
    assert [each["chosen"] for each in found["chosen"]] == [1, 3]
    assert [each["chosen"] for each in found["shared"]] == [5, 3]
    assert found["redundancy"] == pytest.approx(point["rise"] / 2)


def test_that_domains_differ_is_no_error_of_their_mean() -> None:
    domains = {
        "easy": {"loss": 1.0, "stderr": 0.1, "rise": 0.5, "rise_stderr": 0.02},
        "hard": {"loss": 5.0, "stderr": 0.3, "rise": 0.1, "rise_stderr": 0.04},
    }
    found = pooled(domains, {"easy": 300, "hard": 100})
    assert found["loss"] == 2.0
    assert found["rise"] == pytest.approx(0.4)
    assert found["stderr"] == pytest.approx(sqrt(0.075**2 + 0.075**2))
    assert found["rise_stderr"] == pytest.approx(sqrt(0.015**2 + 0.01**2))


def test_redundancy_is_the_mean_rise_over_the_ratios() -> None:
    points = [{"ratio": 0.0, "rise": 0.0}, {"ratio": 0.2, "rise": 0.4}, {"ratio": 0.1, "rise": 0.3}]
    assert mean_rise(points) == pytest.approx((0.015 + 0.035) / 0.2)
    assert mean_rise(points[:1]) is None
