"""The architecture study compares equals, keeps its runs, and says no more than its numbers do."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks.measure.architectures import (
    ARCHITECTURES,
    RECIPE,
    finish,
    run_config,
    share_tokenizer,
    sizes,
)
from benchmarks.measure.chart import Panel, write_charts
from benchmarks.measure.seeds import Claim, interval, shown
from benchmarks.study import (
    CLAIMS,
    QUICK,
    compared,
    described,
    draw,
    loss_table,
    size_table,
    verdicts,
)
from moesaic.config.model import ModelConfig

SVG = "{http://www.w3.org/2000/svg}"
PUBLISHED = ("Dense", "Hash Layer", "Switch", "GShard", "GShard ×1.5", "DeepSeekMoE")


def size(name: str, key: str) -> int:
    model = run_config(name, 0, Path("runs")).model
    assert isinstance(model, ModelConfig)
    return sizes(model, 256)[key]


@pytest.mark.parametrize("name", ["Hash Layer", "Switch", "DeepSeekMoE", "DeepSeekMoE + MTP"])
def test_sparse_models_have_the_parameters_of_gshard(name: str):
    assert size(name, "parameters") == pytest.approx(size("GShard", "parameters"), rel=0.02)


@pytest.mark.parametrize(
    ("name", "other"),
    [("Hash Layer", "Dense"), ("Switch", "Dense"), ("DeepSeekMoE", "GShard")],
)
@pytest.mark.parametrize("key", ["activated", "train_flops_per_token"])
def test_models_compared_activate_as_many_parameters(name: str, other: str, key: str):
    assert size(name, key) == pytest.approx(size(other, key), rel=0.02)


def test_gshard_times_one_and_a_half_has_that_many_parameters_in_experts():
    outside = size("Dense", "parameters") - 2 * 3 * 64 * 192 + 2 * 16 * 64  # routers added
    larger, whole = size("GShard ×1.5", "parameters"), size("GShard", "parameters")
    assert larger - outside == 1.5 * (whole - outside)


def test_the_dense_bound_has_the_parameters_of_all_experts():
    assert size("Dense ×16", "parameters") == pytest.approx(size("GShard", "parameters"), rel=0.02)


def test_only_model_and_balance_differ():
    runs = [run_config(name, 1, Path("runs")).model_dump() for name in ARCHITECTURES]
    same = [
        {key: value for key, value in run.items() if key not in ("model", "balance", "folder")}
        for run in runs
    ]
    assert all(each == same[0] for each in same)
    assert len({run["folder"] for run in runs}) == len(runs)


def test_the_run_file_tells_how_to_make_every_published_model():
    told = " ".join(RECIPE.read_text(encoding="utf-8").replace("\n#", " ").split())
    for name in PUBLISHED[1:]:
        options = " ".join(f"--set {change}" for change in ARCHITECTURES[name])
        assert f"{name} {options}" in told


def test_claims_name_architectures():
    assert {side for claim in CLAIMS for side in (claim.left, claim.right)} <= set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([-0.05, -0.06, -0.055], "reproduced"),
        ([0.05, 0.06, 0.055], "not reproduced"),
        ([-0.05, 0.01, 0.02], "cannot tell"),
        ([-0.05], "cannot tell"),
    ],
)
def test_a_claim_holds_only_with_its_whole_interval(differences: list[float], verdict: str):
    assert Claim("less", "a", "b", "").judge(differences) == verdict


def test_models_that_come_near_are_within_the_tolerance():
    near = Claim("near", "a", "b", "", tolerance=0.01)
    assert near.judge([0.004, 0.005, 0.006]) == "reproduced"
    assert near.judge([0.054, 0.055, 0.056]) == "not reproduced"


def test_an_interval_is_students_over_seeds():
    assert interval([1.0, 2.0, 3.0]) == (2.0, 2.4843)  # 4.303 / √3
    assert interval([1.0]) == (1.0, None)
    assert shown((-0.5, 0.01), "+") == "-0.5000 ± 0.0100"


def test_bars_are_drawn_with_their_middle(tmp_path: Path):
    panel = Panel("end", "which", {"a": [(1.0, 2.0)]}, as_points=True, bars={"a": (1.0, 2.0, 0.5)})
    write_charts(tmp_path / "chart.svg", "Title", [panel])
    paths = ElementTree.parse(tmp_path / "chart.svg").getroot().iter(f"{SVG}path")
    assert sum("V" in path.attrib["d"] for path in paths) == 1


def test_names_stand_in_the_place_of_numbers(tmp_path: Path):
    ends = {"a": [(1.0, 2.0)], "b": [(2.0, 3.0)]}
    panel = Panel("end", "", ends, as_points=True, places={1.0: "a model", 2.0: "another"})
    write_charts(tmp_path / "chart.svg", "Title", [panel])
    root = ElementTree.parse(tmp_path / "chart.svg").getroot()
    slanted = [text.text for text in root.iter(f"{SVG}text") if "rotate" in str(text.attrib)]
    assert slanted == ["a model", "another"]
    assert not [text.text for text in root.iter(f"{SVG}text") if text.text == "1.2"]


def test_a_verdict_at_one_rate_stands_beside_the_difference_at_the_best_of_each():
    losses = {"held_out_loss_by_seed": [4.4, 4.5], "first_seed_by_rate": {"0.1": 4.4, "0.2": 4.0}}
    hashed = {"held_out_loss_by_seed": [4.1, 4.2], "first_seed_by_rate": {"0.1": 4.1, "0.2": 4.3}}
    [claim] = compared({"Switch": losses, "Hash Layer": hashed}).values()
    assert claim["differences_by_seed"] == [0.3, 0.3]
    assert claim["first_seed_at_best_rates"] == -0.1
    one = {**hashed, "first_seed_by_rate": {"0.1": 4.1}}
    [claim] = compared({"Switch": losses, "Hash Layer": one}).values()
    assert claim["first_seed_at_best_rates"] is None


@pytest.mark.slow
def test_a_finished_run_is_read_and_not_trained_again(tmp_path: Path):
    changes = [*QUICK, "steps=2"]
    shared = [*changes, share_tokenizer(tmp_path, changes)]
    runs = {}
    for name in ("GShard", "DeepSeekMoE"):
        runs[name] = [finish(run_config(name, seed, tmp_path, shared)) for seed in range(2)]
    records = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("record.jsonl")}
    assert len(records) == 4
    assert finish(run_config("GShard", 1, tmp_path, shared)) == runs["GShard"][1]
    assert all(path.stat().st_mtime_ns == at for path, at in records.items())

    cases = {name: described(name, found, changes) for name, found in runs.items()}
    claims = compared(cases)
    assert set(claims) == {"fine experts beat whole"}
    assert len(claims["fine experts beat whole"]["differences_by_seed"]) == 2
    assert "**DeepSeekMoE**" in size_table(cases).to_markdown()
    assert "seed 0 at 0.005" in loss_table(cases).to_markdown()
    assert "cannot tell" in verdicts(claims).to_markdown()
    draw(tmp_path / "chart.svg", cases)
    root = ElementTree.parse(tmp_path / "chart.svg").getroot()
    assert len(list(root.iter(f"{SVG}circle"))) == 4
