"""The first sentences say whether it helped, by how much, and how sure that is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from moesaic.report.blocks import Claim
from moesaic.report.read import read_sources
from moesaic.report.sources import Sources
from moesaic.report.verdict import verdict


def claims(sources: Sources) -> list[Claim]:
    found = verdict(sources)
    assert found is not None
    return [block for block in found.blocks if isinstance(block, Claim)]


def evaluation(folder: Path, **against: Any) -> Sources:
    """An evaluation of one task with 100 items, held against a base."""
    score = {"value": 0.425, "stderr": 0.01, "low": 0.4, "high": 0.45, "higher_is_better": True}
    change = {"base": 0.395, "difference": 0.03, "stderr": 0.01, "p": 0.02, "test": "exact McNemar"}
    task = {
        "n": 100,
        "description": {},
        "metrics": {"exact_match": score},
        "against": {"exact_match": {**change, **against}},
    }
    content = {
        "kind": "evaluation",
        "model": {"folder": "m", "digest": "d"},
        "settings": {},
        "tasks": {"gsm8k": task},
    }
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(content))
    return read_sources([folder])


def test_a_score_whose_interval_excludes_zero_got_better(tmp_path: Path):
    [claim] = claims(evaluation(tmp_path, low=0.005, high=0.055))
    assert claim.finding == "better"
    assert claim.text == "gsm8k got better: 39.5 % before, 42.5 % after, +3.0 points."
    assert "95 % interval +0.5 to +5.5, p = 0.02 (exact McNemar)" in claim.detail


def test_a_score_whose_interval_includes_zero_cannot_be_told(tmp_path: Path):
    [claim] = claims(evaluation(tmp_path, low=-0.005, high=0.065))
    assert claim.finding == "unclear"
    assert claim.text.startswith("Cannot tell whether gsm8k changed: 39.5 % before")


def test_a_test_that_is_stricter_than_the_interval_is_believed(tmp_path: Path):
    [claim] = claims(evaluation(tmp_path, low=0.001, high=0.06, verdict="cannot tell apart"))
    assert claim.finding == "unclear"


def test_a_loss_that_fell_got_better(sources: Sources):
    [lines] = [claim for claim in claims(sources) if claim.text.startswith("Loss on lines")]
    assert lines.finding == "better"
    assert "the right token is" in lines.text
    assert "held-out tokens before and after; 95 % interval" in lines.detail


def test_comparisons_are_summed_up_first(sources: Sources):
    first = claims(sources)[0]
    assert first.text.startswith("Better: ")
    assert "Cannot tell: arc_easy" in first.text


def test_an_evaluation_that_is_a_base_is_not_judged_by_itself(sources: Sources):
    assert not [claim for claim in claims(sources) if claim.text.startswith("base")]


@pytest.fixture
def seeds(job: Path, tmp_path: Path) -> Sources:
    """Two runs that differ in nothing but their seed."""
    for name in ("one", "two"):
        shutil.copytree(job / name, tmp_path / name)
    return read_sources([tmp_path])


def test_runs_that_differ_in_their_seed_only_are_one_experiment(seeds: Sources):
    found = claims(seeds)
    assert all(claim.text.startswith("one and two, held-out loss") for claim in found)
    assert all("2 seeds" in claim.detail for claim in found)
    assert {claim.finding for claim in found} <= {"better", "worse", "unclear"}


def test_a_single_run_is_said_to_have_no_interval(job: Path):
    found = claims(read_sources([job / "one"]))
    assert {claim.finding for claim in found} == {"unknown"}
    assert "from step 4 to its last evaluation, among the experts that training held" in (
        found[0].detail
    )
