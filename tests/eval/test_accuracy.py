"""A quantised model's distributions beside those of the original."""

from collections.abc import Callable, Sequence
from math import log, sqrt
from pathlib import Path

import pytest
import torch
from models import random_ids, random_model

from moesaic.checkpoint.load import Reader
from moesaic.checkpoint.quantise import quantise_folder
from moesaic.checkpoint.save import save
from moesaic.config.model import ModelConfig
from moesaic.data.batch import Batch
from moesaic.eval.accuracy import Told, compare_told, layer_errors, listen, per_token
from moesaic.model.transformer import Transformer

Tiny = Callable[..., ModelConfig]


def batch(config: ModelConfig, seed: int) -> Batch:
    ids = random_ids(config, 2, 12, seed=seed)
    labels = ids.roll(-1, 1)
    labels[:, -1] = -100
    positions = torch.arange(12).expand(2, -1)
    return Batch(ids, labels, positions, torch.zeros_like(ids))


def heard(model: Transformer, seeds: Sequence[int] = (0, 1)) -> Told:
    return listen(model, [batch(model.config, seed) for seed in seeds], lambda: None)


def test_a_model_agrees_with_itself(tiny_config: Tiny):
    model = random_model(tiny_config("v2"))
    found = compare_told(heard(model), heard(model))
    assert (found.tokens, found.rows) == (44, 4)
    assert found.divergence.value == found.loss_change.value == found.loss_change.stderr == 0
    assert found.same_choice.value == 1


def test_the_losses_are_those_of_the_models(tiny_config: Tiny):
    one, other = (random_model(tiny_config("v3"), seed) for seed in (0, 5))
    found = compare_told(heard(one), heard(other))

    def loss(model: Transformer) -> float:
        parts = [batch(model.config, seed) for seed in (0, 1)]
        with torch.inference_mode():
            sums = [
                model.loss(one.ids_BS, one.labels_BS, one.positions_BS, one.documents_BS)
                for one in parts
            ]
        return sum(part.next_token.item() for part in sums) / 44

    assert found.original_loss == pytest.approx(loss(one), rel=1e-5)
    assert found.loss_change.value == pytest.approx(loss(other) - loss(one), abs=1e-5)
    assert found.divergence.value > 0


def test_the_divergence_is_that_of_the_original_from_the_other():
    """Two outcomes with probabilities 3/4 and 1/4 beside 1/2 and 1/2."""
    labels, head = (torch.tensor([0]),), torch.eye(2)
    original = Told((torch.tensor([[log(3), 0.0]]),), labels, head)
    even = Told((torch.zeros(1, 2),), labels, head)
    found = compare_told(original, even)
    assert found.divergence.value == pytest.approx(0.75 * log(1.5) + 0.25 * log(0.5))
    assert found.loss_change.value == pytest.approx(log(1.5))
    assert found.divergence.stderr is None  # of one row nothing is known


def test_errors_are_over_rows_and_not_over_tokens():
    """Of rows of one size it is the error of the mean of the rows' means."""
    found = per_token([10.0, 20.0, 30.0], [10, 10, 10])
    assert found.value == 2
    assert found.stderr == pytest.approx(1 / sqrt(3))


def test_the_layer_whose_weights_moved_furthest_comes_first(tmp_path: Path, tiny_config: Tiny):
    config = tiny_config("v2", hidden_size=32, moe_intermediate_size=32, intermediate_size=32)
    state = random_model(config).state_dict()
    name = "model.layers.2.self_attn.q_proj.weight"
    state[name][:, ::2] *= 30  # makes the groups' other weights coarse
    save(tmp_path / "base", config, state, "float32")
    base = Reader(tmp_path / "base")
    for form in ("8", "4"):
        quantise_folder(base, tmp_path / form, form, 32, lambda spec: None)
    eight, four = (layer_errors(base, Reader(tmp_path / form), lambda: None) for form in ("8", "4"))
    assert sorted(one.layer for one in four) == [0, 1, 2]
    assert [one.error for one in four] == sorted((one.error for one in four), reverse=True)
    assert 0.003 < eight[0].error < 0.01 < 0.05 < four[0].error < 0.12
