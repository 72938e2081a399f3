"""The size of what a run trains is counted over the model's tensors."""

import json
from pathlib import Path
from typing import Any

from slices import run_in

from moesaic.checkpoint.load import Reader
from moesaic.config.model import ModelConfig
from moesaic.config.presets import PRESETS
from moesaic.config.train import TrainConfig
from moesaic.esft.park import load_slice
from moesaic.esft.select import Selection
from moesaic.report.read import read_sources
from moesaic.report.sizes import planned_memory, sizes
from moesaic.report.sources import Run, Sources
from moesaic.runlog import RunLog, describe_run


def run_of(
    folder: Path, model: ModelConfig | str, experts: int | None = None, **changes: Any
) -> Run:
    """A run's record as it begins, with the first experts of each layer for a slice."""
    esft = {"experts": experts} if experts else None
    base = run_in(folder, folder / "run", esft, **changes)
    config = TrainConfig.parse({**base.model_dump(), "model": model}).model_dump(mode="json")
    RunLog(folder / "run" / "record.jsonl", describe_run(config, 0)).close()
    if experts and isinstance(model, ModelConfig):
        layers = {str(layer): list(range(experts)) for layer in model.moe_layers}
        found = {"base": "0" * 64, "selection": {"experts": layers}}
        (folder / "run" / "slice.json").write_text(json.dumps(found))
    return read_sources([folder / "run"]).runs[0]


def test_v2_lite_with_eight_trained_experts_has_the_numbers_of_its_report(tmp_path: Path):
    found = sizes(run_of(tmp_path, PRESETS["deepseek-v2-lite"], 8))
    assert found is not None
    assert found.total == 15_706_484_224
    assert found.held == 3_110_989_312
    assert found.trained == 1_799_356_416
    assert found.parked == 15_706_484_224 - 3_110_989_312
    assert found.experts == "8 of 64"


def test_what_a_slice_holds_and_trains_is_what_its_model_has(sources: Sources):
    run = sources.runs[0]
    found = sizes(run)
    assert found is not None
    assert run.slice is not None
    chosen = Selection.model_validate(run.slice.selection.model_dump())
    model = load_slice(Reader(run.config["model"]), chosen)
    assert found.held == sum(tensor.numel() for tensor in model.state_dict().values())
    trained = [one.numel() for one in model.parameters() if one.requires_grad]
    assert found.trained == sum(trained)


def test_a_model_that_is_not_here_has_no_size(tmp_path: Path):
    assert sizes(run_of(tmp_path, "no/such/folder")) is None


def test_a_whole_model_is_all_held_and_all_trained_but_the_choice_bias(tmp_path: Path):
    config = PRESETS["deepseek-v3"]
    found = sizes(run_of(tmp_path, config))
    assert found is not None
    assert found.held == found.total + found.modules
    assert found.held - found.trained == 256 * 59  # the bias of every layer and the module
    assert found.total == 671_026_419_200


def test_memory_is_planned_with_the_settings_of_the_run(tmp_path: Path):
    run = run_of(tmp_path, PRESETS["deepseek-v2-lite"], 8, precision="bfloat16", recompute=True)
    found = planned_memory(run)
    assert found is not None
    assert found.weights == 2 * 3_110_989_312
    assert found.optimizer == 4 * 1_799_356_416


def test_what_the_planner_does_not_know_is_not_planned(tmp_path: Path):
    run = run_of(tmp_path, PRESETS["tiny-v3"], 8, precision="autocast")
    assert planned_memory(run) is None
