"""A study of a checkpoint from end to end: every figure is there and says what it should."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moesaic.analyse.routing import read_resident, study_routing
from moesaic.analyse.sources import Source, parse_sources
from moesaic.analyse.study import Study, Subjects, pass_tokens
from moesaic.config.analyse import AblationConfig, RoutingConfig
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import ConfigError, DataError
from moesaic.esft.score import score_experts
from moesaic.model.build import load_model

Write = Callable[..., Path]
FEW = RoutingConfig(tokens=300)


def _sources(folder: Path) -> tuple[Source, ...]:
    home = folder.parent
    return parse_sources([f"letters={home}/letters.txt", f"digits={home}/digits.txt"])


def _study(folder: Path, settings: RoutingConfig = FEW, **more: Any) -> dict[str, Any]:
    return study_routing(folder, _sources(folder), settings, **more).values


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_loads_are_the_scores_of_the_experts(family: str, write_checkpoint: Write) -> None:
    folder = write_checkpoint(family)
    found, model = _study(folder), load_model(folder)
    tokenizer = Tokenizer.load(folder)
    for source in _sources(folder):
        scores = score_experts(model, source.batches(tokenizer, 64, 300))
        load, domain = found["loads"][source.name], found["domains"][source.name]
        assert domain["tokens"] == scores.tokens >= 300
        assert domain["loss"] == pytest.approx(scores.loss, rel=1e-5)
        assert found["layers"] == list(scores.token)
        for choices, gate, token_score, gate_score in zip(
            load["choices"], load["gate"], scores.token.values(), scores.gate.values(), strict=True
        ):
            assert choices == pytest.approx(token_score, abs=1e-6)
            assert gate == pytest.approx(gate_score, rel=1e-5)
    assert found["prediction_layers"] == ([3] if family == "v3" else [])
    assert found["vocabulary"]["layers"] == [1, 2]


def test_domains_differ_more_than_halves_of_one(write_checkpoint: Write) -> None:
    found = _study(write_checkpoint("v2"), RoutingConfig(tokens=1600))
    between = found["overlap"]["mean"]["divergence"][0][1]
    for half in found["overlap"]["halves"].values():
        assert half["divergence"] < between / 2
    special = found["specialisation"]
    for bits, halves in zip(special["corrected"], special["halves"], strict=True):
        assert 3 * halves < bits < special["most"] == 1
    assert found["overlap"]["mean"]["shared"][0][0] == 8  # every expert of this model
    words = found["vocabulary"]
    for foretold, busiest in zip(words["foretold"], words["busiest"], strict=True):
        assert 1 > foretold > busiest


def test_the_same_checkpoint_has_not_drifted_and_another_has(write_checkpoint: Write) -> None:
    folder = write_checkpoint("v2")
    same = _study(folder, against=folder)
    for of in same["drift"]["domains"].values():
        assert set(of["first"] + of["choices"] + of["divergence"]) == {0}
    assert same["domains"]["digits"]["against"]["rise"] == 0
    assert set(same["drift"]["moved"][0]) == {0}
    other = _study(folder, against=write_checkpoint("v2", seed=5))
    assert min(other["drift"]["domains"]["digits"]["choices"]) > 0.2
    assert other["domains"]["digits"]["against"]["rise_stderr"] > 0
    assert other["against"]["digest"] != other["model"]["digest"]
    assert "drift" not in other["left_out"]


def test_where_tokens_went_before_is_what_the_other_checkpoint_does(
    write_checkpoint: Write,
) -> None:
    one, other = write_checkpoint("v2"), write_checkpoint("v2", seed=5)
    for name, of in _study(one, against=other)["drift"]["domains"].items():
        assert of["before"] == _study(other)["loads"][name]["choices"]


def test_layers_that_one_of_two_has_not_are_left_out_of_the_drift(write_checkpoint: Write) -> None:
    one, other = write_checkpoint("v3"), write_checkpoint("v3", num_nextn_predict_layers=0)
    found = _study(one, against=other)
    assert found["layers"] == [1, 2, 3]
    assert found["drift"]["layers"] == [1, 2]
    assert len(found["drift"]["moved"]) == len(found["drift"]["router"]) == 2


def test_the_loss_above_the_other_checkpoint_is_that_on_the_same_tokens(
    write_checkpoint: Write,
) -> None:
    one, other = write_checkpoint("v2"), write_checkpoint("v2", seed=5)
    domain = _study(one, against=other)["domains"]["letters"]
    alone = _study(other)["domains"]["letters"]
    assert domain["against"]["loss"] == alone["loss"]
    assert domain["against"]["rise"] == pytest.approx(domain["loss"] - alone["loss"], abs=1e-4)


def test_rows_are_as_long_as_asked_for_and_no_longer_than_the_model_sees(
    write_checkpoint: Write,
) -> None:
    folder = write_checkpoint("v2")
    model, tokenizer = load_model(folder), Tokenizer.load(folder)
    found = _study(folder, RoutingConfig(tokens=300, seq_len=16))
    for source in _sources(folder):
        [*batches] = source.batches(tokenizer, 16, 300)
        assert {batch.ids_BS.shape[1] for batch in batches} == {16}
        scores = score_experts(model, batches)
        assert found["domains"][source.name]["loss"] == pytest.approx(scores.loss, rel=1e-5)
    with pytest.raises(ConfigError, match="seq_len=65 is more than max_position_embeddings=64"):
        _study(folder, RoutingConfig(seq_len=65))


def test_the_same_is_found_with_the_experts_on_disk(write_checkpoint: Write) -> None:
    folder = write_checkpoint("v2")
    asked = RoutingConfig(tokens=300, ablation=AblationConfig(tokens=200))
    found = [_study(folder, asked.changed(hold=hold)) for hold in ("weights", "disk")]
    for name in ("loads", "drift", "overlap", "weights", "ablation", "domains"):
        assert _close(found[0][name], found[1][name]), name


def _close(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_close, one, other))
    return one == pytest.approx(other, abs=2e-5) if isinstance(one, float) else one == other


def test_resident_experts_hold_what_they_are_chosen_for(
    write_checkpoint: Write, tmp_path: Path
) -> None:
    selection = tmp_path / "selection.json"
    selection.write_text(json.dumps({"experts": {"1": [5, 2, 1, 0]}}))
    found = _study(write_checkpoint("v2"), RoutingConfig(tokens=300, resident=str(selection)))
    assert found["coverage"]["held"] == [4, 8]  # layers left out hold all
    for name, of in found["coverage"]["domains"].items():
        share = sum(found["loads"][name]["choices"][0][expert] for expert in (0, 1, 2, 5))
        assert of["choices"] == pytest.approx([share, 1], abs=1e-5)
        assert of["tokens"][0] == of["mean"]["everywhere"] < share


def test_experts_switched_off_are_told_of_both_checkpoints(write_checkpoint: Write) -> None:
    asked = RoutingConfig(tokens=300, ablation=AblationConfig(tokens=150))
    dense = {"n_routed_experts": None, "n_shared_experts": None, "num_experts_per_tok": None}
    other = write_checkpoint("v1", moe_intermediate_size=None, **dense)
    found = _study(write_checkpoint("v1"), asked, against=other)
    ablation = found["ablation"]
    assert [point["experts"] for point in ablation["model"]["disabled"]] == [0, 1, 2]
    assert ablation["against"]["disabled"] == []
    assert ablation["against"]["left_out"]["shared"] == "the model is dense"
    assert ablation["against"]["natural"]["loss"] > 0
    assert found["drift"] is None
    assert found["left_out"]["drift"].startswith("the two have not the same layers of experts")


def test_every_figure_that_is_missing_says_why(write_checkpoint: Write) -> None:
    hash_layer = {"topk_method": "hash", "num_experts_per_tok": 1, "n_shared_experts": None}
    folder = write_checkpoint("v1", **hash_layer)
    found = study_routing(folder, _sources(folder)[:1], FEW).values
    nothing = {name for name, value in found.items() if value is None and name != "against"}
    assert nothing == {"specialisation", "coactivation", "coverage", "drift", "ablation"}
    assert set(found["left_out"]) == nothing
    assert found["vocabulary"]["foretold"] == [1, 1]  # a hash of the token decides


def test_what_is_saved_is_what_was_found(write_checkpoint: Write, tmp_path: Path) -> None:
    folder = write_checkpoint("v2")
    asked = RoutingConfig(tokens=300, ablation=AblationConfig(tokens=150))
    found = study_routing(folder, _sources(folder), asked, against=write_checkpoint("v2", seed=5))
    found.save(tmp_path / "study")
    written = json.loads((tmp_path / "study" / "routing.json").read_text())
    assert written == json.loads(json.dumps(found.values))
    assert written["kind"] == "routing"
    rows = {
        file.stem: list(csv.DictReader(file.read_text().splitlines()))
        for file in (tmp_path / "study").glob("*.csv")
    }
    loads = [float(row["choices"]) for row in rows["loads"] if row["domain"] == "digits"]
    assert loads == [share for row in written["loads"]["digits"]["choices"] for share in row]
    assert {name: len(of) for name, of in rows.items()} == {
        "loads": 2 * 2 * 8,
        "specialisation": 2 * 8,
        "overlap": 2 * 2 * 2,
        "coactivation": sum(len(one["pairs"]) for one in written["coactivation"]["layers"]),
        "drift": 2 * 2,
        "ablation": 2 * 3 * (2 + 3 + 4),
    }


def test_progress_is_told_by_domain_and_then_by_layer(write_checkpoint: Write) -> None:
    folder = write_checkpoint("v2")
    passed: list[tuple[str, int]] = []
    layers: list[int] = []
    study_routing(
        folder,
        _sources(folder),
        FEW,
        on_tokens=lambda domain, tokens: passed.append((domain, tokens)),
        on_layer=layers.append,
    )
    assert [domain for domain, _ in passed] == sorted((d for d, _ in passed), reverse=True)
    assert dict(passed)["digits"] >= 300
    assert layers == [1, 2]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["english"], "--data english: not a domain; write NAME=FILE, NAME=PATTERN"),
        (["a=x.txt", "a=y.txt"], "two domains are called 'a'; give each a name of its own"),
        (["a=x.txt", "b=trace:y"], "some domains are recorded routing (trace:) and some are text"),
    ],
)
def test_a_domain_has_a_name_and_a_place(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_sources(texts)
    assert str(error.value).startswith(message)


def test_a_domain_of_the_corpus_names_itself() -> None:
    assert parse_sources(["corpus:math"]) == (Source("math", "corpus:math"),)


def test_what_cannot_be_compared_is_refused(write_checkpoint: Write, tmp_path: Path) -> None:
    folder = write_checkpoint("v2")
    other = tmp_path / "other"
    other.mkdir()
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"version"', '"version" ', 1))
    with pytest.raises(ConfigError, match="has another tokenizer than"):
        _study(folder, against=other)
    with pytest.raises(ConfigError, match=r"recorded routing .* nothing runs: give text"):
        study_routing(folder, [Source("a", "trace:x")], FEW, against=folder)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_resident(str(tmp_path / "no.json"))


def test_a_domain_without_tokens_is_refused(write_checkpoint: Write) -> None:
    model = load_model(write_checkpoint("v2"))
    with pytest.raises(DataError, match="domain 'none' holds no learned token; give more text"):
        pass_tokens(Study(model.config, FEW), "none", Subjects(model), [])
