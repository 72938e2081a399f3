"""Scores of experts: which tokens count, what they add up to, and how they are stored."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import moesaic
from moesaic.checkpoint.save import save
from moesaic.config.model import ModelConfig
from moesaic.data.batch import IGNORED, Batch
from moesaic.errors import ConfigError, DataError
from moesaic.esft.score import ExpertScores, first_tokens, score_experts
from moesaic.model.build import build_model
from moesaic.model.residency import Residency
from moesaic.model.trace import RoutingTrace

Make = Callable[..., Batch]
Config = Callable[..., ModelConfig]


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_scores_are_means_over_the_learned_tokens(
    family: str, tiny_config: Config, make_batch: Make, generator: torch.Generator
) -> None:
    model = build_model(tiny_config(family))
    batch = make_batch(2, 12, generator)
    trace = RoutingTrace()
    model(batch.ids_BS, batch.positions_BS, batch.documents_BS, trace=trace)
    learned = [i for i, label in enumerate(batch.labels_BS.flatten().tolist()) if label != IGNORED]

    scores = score_experts(model, [batch])

    assert scores.tokens == len(learned) == batch.learned
    for layer, routing in trace.layers.items():
        for expert in range(8):
            gates = [
                routing.weights_TK[token][routing.ids_TK[token] == expert].sum().item()
                for token in learned
            ]
            chosen = sum(expert in routing.ids_TK[token].tolist() for token in learned)
            assert scores.token[layer][expert] == pytest.approx(chosen / len(learned) / 3)
            assert scores.gate[layer][expert] == pytest.approx(sum(gates) / len(learned))


def test_token_scores_of_a_layer_add_up_to_1(
    tiny_config: Config, make_batch: Make, generator: torch.Generator
) -> None:
    scores = score_experts(build_model(tiny_config("v2")), [make_batch(3, 16, generator)])
    assert list(scores.token) == [1, 2]
    for of_layer in scores.token.values():
        assert sum(of_layer) == pytest.approx(1)


def test_what_is_not_learned_does_not_change_a_score(
    tiny_config: Config, make_batch: Make, generator: torch.Generator
) -> None:
    model = build_model(tiny_config("v1"))
    batch = make_batch(2, 12, generator)
    ids_BS = batch.ids_BS.clone()
    ids_BS[:, -2:] = 5  # padding of another kind
    other = Batch(ids_BS, batch.labels_BS, batch.positions_BS, batch.documents_BS)
    score, score_other = (score_experts(model, [each]) for each in (batch, other))
    assert score.token == score_other.token
    for layer, gates in score.gate.items():  # float32 sums of rows in another order
        assert score_other.gate[layer] == pytest.approx(gates, rel=1e-5)


def test_scores_do_not_depend_on_how_the_data_is_cut_into_batches(
    tiny_config: Config, make_batch: Make, generator: torch.Generator
) -> None:
    model = build_model(tiny_config("v2"), dtype="float64")
    batch = make_batch(4, 12, generator)
    whole = score_experts(model, [batch])
    parts = score_experts(model, [batch.rows(2, 4), batch.rows(0, 2)])
    assert parts.token == whole.token
    assert parts.tokens == whole.tokens
    assert parts.loss == pytest.approx(whole.loss)
    for layer, of_layer in whole.gate.items():
        assert parts.gate[layer] == pytest.approx(of_layer, rel=1e-12)


def test_a_prediction_module_is_scored_where_its_token_is_learned(
    tiny_config: Config, make_batch: Make, generator: torch.Generator
) -> None:
    model = build_model(tiny_config("v3"))
    batch = make_batch(2, 12, generator)
    trace = RoutingTrace()
    loss = model.loss(
        batch.ids_BS, batch.labels_BS, batch.positions_BS, batch.documents_BS, trace=trace
    )
    scores = score_experts(model, [batch])
    module = 3  # after layers 0, 1 and 2
    assert list(scores.token) == [1, 2, module]
    assert sum(scores.token[module]) == pytest.approx(1)
    choices = [round(share * 3 * int(loss.mtp_tokens[0]), 6) for share in scores.token[module]]
    assert all(count == int(count) for count in choices)
    assert loss.mtp_tokens[0] < loss.tokens


def test_scoring_a_folder_is_scoring_its_model(
    tiny_config: Config, make_batch: Make, generator: torch.Generator, tmp_path: Path
) -> None:
    model = build_model(tiny_config("v1"))
    save(tmp_path / "base", model.config, model.state_dict(), "float32")
    batch = make_batch(2, 12, generator)
    seen: list[int] = []
    scores = moesaic.score_experts(tmp_path / "base", [batch, batch], seen.append)
    assert scores == score_experts(model, [batch, batch])
    assert seen == [batch.learned, 2 * batch.learned]


def test_scores_are_read_back_as_they_were_written(
    tiny_config: Config, make_batch: Make, generator: torch.Generator, tmp_path: Path
) -> None:
    scores = score_experts(build_model(tiny_config("v3")), [make_batch(2, 12, generator)])
    scores.save(tmp_path / "scores.json")
    assert ExpertScores.load(tmp_path / "scores.json") == scores


@pytest.mark.parametrize("text", ["", "[]", '{"token": {}}', '{"token": 1, "gate": 1}'])
def test_a_file_without_scores_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"scores\.json holds no expert scores .* score again"):
        ExpertScores.load(path)


def test_a_slice_is_not_scored(
    tiny_config: Config, make_batch: Make, generator: torch.Generator
) -> None:
    residency = Residency.only({1: (0, 1, 2, 3)})
    model = build_model(tiny_config("v1"), residency=residency)
    with pytest.raises(ConfigError, match=r"layer 1 may choose 4 of its 8.*load the whole model"):
        score_experts(model, [make_batch(1, 8, generator)])


def test_a_dense_model_is_not_scored(tiny_config: Config) -> None:
    dense = dict.fromkeys(
        ("n_routed_experts", "n_shared_experts", "num_experts_per_tok", "moe_intermediate_size")
    )
    model = build_model(tiny_config("v1", **dense))
    with pytest.raises(ConfigError, match="dense deepseek model has no experts to score"):
        score_experts(model, [])


def test_data_with_nothing_learned_is_refused(tiny_config: Config) -> None:
    with pytest.raises(DataError, match="no learned token to score experts on; give more of it"):
        score_experts(build_model(tiny_config("v1")), [])


def test_batches_are_drawn_until_they_hold_enough_tokens(generator: torch.Generator) -> None:
    ids_BS = torch.randint(0, 9, (2, 5), generator=generator)
    batch = Batch(ids_BS, ids_BS, ids_BS, ids_BS)
    assert len(list(first_tokens(iter([batch] * 9), 21))) == 3
    assert len(list(first_tokens(iter([batch] * 2), 21))) == 2
