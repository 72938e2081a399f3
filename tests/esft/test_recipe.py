"""From a checkpoint and text to a merged checkpoint, and going on where a run stopped."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from slices import Run, run_in, stop_after, write_home

from moesaic.checkpoint.check import check
from moesaic.checkpoint.digest import digest
from moesaic.checkpoint.files import read_safetensors
from moesaic.checkpoint.load import Reader
from moesaic.config.esft import EsftConfig
from moesaic.config.model import ModelConfig
from moesaic.config.train import TrainConfig
from moesaic.data.batch import NOTHING_FED
from moesaic.errors import CheckpointError, ConfigError
from moesaic.esft.merge import merge_shards
from moesaic.esft.recipe import train_slice
from moesaic.esft.score import ExpertScores
from moesaic.esft.select import select_experts, write_selection
from moesaic.esft.shard import ShardManifest
from moesaic.model.build import load_model
from moesaic.model.parked import ParkedEmbedding
from moesaic.model.quantised import QuantisedLinear
from moesaic.runlog import read_run
from moesaic.train.loop import train


@pytest.fixture
def run(tmp_path: Path, home: Path) -> Run:
    """``run(folder, **changes)``: four steps on short lines, three experts of each layer."""
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)

    def build(folder: str = "run", **changes: Any) -> TrainConfig:
        esft = {"experts": 3, "score_tokens": 300}
        return run_in(tmp_path, tmp_path / folder, **{"esft": esft, **changes})

    return build


class Told:
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def step(self, seen: object) -> None:
        pass

    def say(self, text: str) -> None:
        self.said.append(text)


def test_a_slice_is_scored_trained_written_and_merged(run: Run, tmp_path: Path) -> None:
    base, config = tmp_path / "base", run()
    result = train_slice(config)

    scores = ExpertScores.load(tmp_path / "run" / "scores.json")
    assert 300 <= scores.tokens < 300 + 2 * 24
    assert result.selection.experts == select_experts(scores, experts=3)
    assert list(result.selection.experts) == [1, 2, 3]  # layers 1 and 2, and the prediction module

    assert result.shard is not None
    assert result.shard == tmp_path / "run" / "shard"
    manifest = ShardManifest.read(result.shard)
    assert manifest.work.base == digest(base)
    assert manifest.work.run == config.model_dump(mode="json")
    assert (manifest.work.variant, manifest.work.hold) == ("masked", "weights")
    assert manifest.work.fed == result.training.fed != NOTHING_FED
    assert (manifest.work.tokens, manifest.work.steps) == (4 * 4 * 24, 4)
    assert manifest.work.data == (str(tmp_path / "lines.txt"),)
    assert manifest.dtype == "bfloat16"

    merge_shards(base, [result.shard], tmp_path / "merged")
    before, after = Reader(base), Reader(tmp_path / "merged")
    changed = {n for n in before.names if not torch.equal(before.read(n), after.read(n))}
    assert changed == set(manifest.tensors)
    merged = load_model(tmp_path / "merged").state_dict()
    slot = sorted(result.selection.experts[1])[0]
    trained = result.training.model.state_dict()["model.layers.1.mlp.experts.down_proj"][0]
    assert torch.equal(
        merged["model.layers.1.mlp.experts.down_proj"][slot], trained.bfloat16().float()
    )


def test_a_slice_learns_its_data(run: Run) -> None:
    result = train_slice(run(steps=12))
    losses = [line["next_token"] for line in read_run(result.training.folder.record).of("step")]
    assert losses[-1] < losses[0] - 0.1


def test_nothing_but_the_selected_experts_moves(run: Run, tmp_path: Path) -> None:
    result = train_slice(run())
    base = load_model(tmp_path / "base", residency=result.selection.residency())
    before, after = base.state_dict(), result.training.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {
        f"model.layers.{layer}.mlp.experts.{stack}_proj"
        for layer in (1, 2, 3)
        for stack in ("gate_up", "down")
    }


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_stopped_slice_goes_on_to_the_same_shard(steps: int, run: Run, tmp_path: Path) -> None:
    whole = train_slice(run("whole"))
    stopped = train_slice(run("stopped"), stop_after(steps))
    assert stopped.shard is None
    assert stopped.training.interrupted
    scored = (tmp_path / "stopped" / "scores.json").stat().st_mtime_ns
    resumed = train_slice(run("stopped"))
    assert (tmp_path / "stopped" / "scores.json").stat().st_mtime_ns == scored
    assert whole.shard is not None
    assert resumed.shard is not None
    one, other = ShardManifest.read(whole.shard), ShardManifest.read(resumed.shard)
    assert one.tensors == other.tensors
    assert one.work.changed(run={}) == other.work.changed(run={})


@pytest.mark.parametrize("hold", ["int8", "int4"])
def test_a_stopped_slice_beside_integers_goes_on_to_the_same_shard(hold: str, run: Run) -> None:
    esft = {"experts": 3, "score_tokens": 300, "variant": "natural", "hold": hold}
    whole = train_slice(run("whole", esft=esft))
    train_slice(run("stopped", esft=esft), stop_after(2))
    resumed = train_slice(run("stopped", esft=esft))
    assert whole.shard is not None
    assert resumed.shard is not None
    assert ShardManifest.read(whole.shard).tensors == ShardManifest.read(resumed.shard).tensors


def test_a_finished_slice_is_found_finished(run: Run) -> None:
    first = train_slice(run())
    assert first.shard is not None
    written = (first.shard / "manifest.json").stat().st_mtime_ns
    again = train_slice(run())
    assert again.shard == first.shard
    assert (first.shard / "manifest.json").stat().st_mtime_ns == written


def test_a_published_selection_is_trained_without_scoring(run: Run, tmp_path: Path) -> None:
    selection = {"experts": {"1": [7, 0, 2], "2": [1, 2, 3, 4]}, "shared_experts": True}
    (tmp_path / "chosen.json").write_text(json.dumps(selection))
    result = train_slice(run(esft={"selection": str(tmp_path / "chosen.json")}))
    assert not (tmp_path / "run" / "scores.json").exists()
    assert result.shard is not None
    held = read_safetensors(result.shard / "shard.safetensors")
    assert sum(".experts." in name for name in held) == (3 + 4) * 3
    assert sum(".shared_experts." in name for name in held) == 3 * 3
    write_selection(tmp_path / "again.json", result.selection)
    assert json.loads((tmp_path / "again.json").read_text())["experts"] == selection["experts"]


def test_mixed_precision_trains_float32_experts_in_a_bfloat16_slice(run: Run) -> None:
    model = train_slice(run(precision="mixed")).training.model
    types = {(parameter.requires_grad, parameter.dtype) for parameter in model.parameters()}
    assert types == {(True, torch.float32), (False, torch.bfloat16)}


def test_scoring_says_how_far_it_is_and_what_was_chosen(run: Run) -> None:
    display = Told()
    told = display.said
    train_slice(run(), display=display)
    assert any(line.startswith("scored ") and line.endswith("of 300 tokens") for line in told)
    place = told.index("training 9 experts in 3 layers")
    assert re.match(r"the base makes \d+% of its choices .* tokens that were not", told[place + 1])
    assert re.search(r"\| gap before training [+-]\d\.\d{4}.* nats$", told[place + 2])


def test_coverage_and_a_picture_lie_beside_the_scores(run: Run, tmp_path: Path) -> None:
    train_slice(run())
    coverage = json.loads((tmp_path / "run" / "coverage.json").read_text())
    assert {found["held"] for found in coverage["layers"].values()} == {3}
    assert (tmp_path / "run" / "experts.svg").read_text().startswith("<svg ")


def test_a_natural_slice_tells_that_there_is_no_gap(run: Run, tmp_path: Path) -> None:
    display = Told()
    told = display.said
    esft = {"experts": 3, "score_tokens": 300, "variant": "natural"}
    train_slice(run(esft=esft), display=display)
    assert any(line.endswith("as well, so routing leaves no gap") for line in told)
    assert not (tmp_path / "run" / "coverage.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"esft": None}, r"esft is missing; add a table \[esft\]"),
        ({"model": "tiny-v3"}, "model is not the folder of one; set model to a folder, or remove"),
        ({"esft": {"experts": 2}}, "esft.experts=2 is not possible; .* give 3 to 8"),
        ({"esft": {"experts": 9}}, "esft.experts=9 is not possible; .* give 3 to 8"),
        ({"balance": {"bias_speed": 0.01}}, "balance.bias_speed would move the choice bias .*esft"),
    ],
)
def test_settings_that_contradict_a_slice_are_refused_before_scoring(
    changes: dict[str, Any], message: str, run: Run, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train_slice(run(**changes))
    assert not (tmp_path / "run" / "scores.json").exists()


def test_going_on_with_other_settings_is_refused(run: Run) -> None:
    train_slice(run(), stop_after(1))
    with pytest.raises(ConfigError, match=r"esft\.experts was 3 and is 4"):
        train_slice(run(esft={"experts": 4, "score_tokens": 300}))


def test_going_on_from_another_base_is_refused(run: Run, tmp_path: Path) -> None:
    train_slice(run(), stop_after(1))
    shard = train_slice(run("other")).shard
    assert shard is not None
    merge_shards(tmp_path / "base", [shard], tmp_path / "merged")
    (tmp_path / "base").rename(tmp_path / "old")
    (tmp_path / "merged").rename(tmp_path / "base")
    assert check(tmp_path / "base").is_sound
    with pytest.raises(
        CheckpointError, match=r"base is not the base that the run in .* began with"
    ):
        train_slice(run())


def test_the_loop_alone_does_not_train_a_whole_model_where_a_slice_is_asked_for(run: Run) -> None:
    with pytest.raises(ConfigError, match="esft trains a part of the model"):
        train(run())


@pytest.mark.parametrize("hold", ["int8", "int4"])
def test_linear_layers_beside_a_slice_are_held_as_integers(hold: str, run: Run) -> None:
    chosen = {"experts": 3, "score_tokens": 300}
    exact = train_slice(run("exact", esft=chosen))
    small = {"hold_linears": hold, "park_embedding": True, "modules": ["attention"]}
    found = train_slice(run("small", esft={**chosen, **small}))
    model = found.training.model
    held = {name for name, m in model.named_modules() if isinstance(m, QuantisedLinear)}
    assert {"model.layers.0.mlp.up_proj", "model.layers.1.mlp.shared_experts.down_proj"} < held
    assert not any("self_attn" in name for name in held)  # those are trained
    assert isinstance(model.model.embed_tokens, ParkedEmbedding)
    assert found.shard is not None
    work = ShardManifest.read(found.shard).work
    assert (work.hold, work.hold_linears) == ("weights", hold)
    losses = [read_run(one.training.folder.record).of("step")[0]["loss"] for one in (exact, found)]
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize(
    ("esft", "message"),
    [
        (
            {"hold_linears": "int8", "shared_experts": True, "non_expert_modules": True},
            "hold_linears='int8' has no use where all linear layers are trained; remove it",
        ),
        (
            {"park_embedding": True, "modules": ["embedding"]},
            "park_embedding keeps the embedding off the device, where it is to be trained",
        ),
    ],
)
def test_what_is_trained_is_not_held_small(esft: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EsftConfig.parse({"experts": 3, **esft})


def test_a_head_that_is_the_embedding_is_not_parked(
    tmp_path: Path, tiny_config: Callable[..., ModelConfig]
) -> None:
    config = tiny_config("v2", vocab_size=300, tie_word_embeddings=True)
    write_home(tmp_path, config, "bfloat16")
    esft = {"experts": 3, "score_tokens": 300, "park_embedding": True}
    with pytest.raises(ConfigError, match=r"as its head \(tie_word_embeddings=true\)"):
        train_slice(run_in(tmp_path, tmp_path / "run", esft))
    assert not (tmp_path / "run" / "scores.json").exists()
