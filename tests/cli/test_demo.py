"""`moesaic demo`: the whole job, in a few steps."""

import subprocess
import sys
from pathlib import Path

import pytest

from moesaic.checkpoint.check import check
from moesaic.report.blocks import Claim
from moesaic.report.page import make_page
from moesaic.report.read import read_sources

DOMAINS = ("english", "shakespeare", "math")


def demo(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "moesaic", "demo", str(folder), "--steps", "2"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)


@pytest.mark.slow
def test_the_demo_shows_both_domains_before_and_after_and_where_the_files_are(tmp_path: Path):
    told = demo(tmp_path / "demo").stdout
    for model in ("before", "slice alone", "merged"):
        [row] = [line for line in told.splitlines() if line.strip().startswith(f"{model}  ")]
        losses = [float(number) for number in row.split()[-3:]]
        assert all(0 < loss < 20 for loss in losses)
    [row] = [line for line in told.splitlines() if line.strip().startswith("change  ")]
    assert row.count(" ± ") == 3
    for part in ("base/model", "slice/shard", "merged", "report.html"):
        assert str(tmp_path / "demo" / part) in told
    assert check(tmp_path / "demo" / "merged").is_sound
    again = demo(tmp_path / "demo").stdout
    table = "held-out loss"
    assert (
        again[again.index(table) :].split("\n\n")[0] == told[told.index(table) :].split("\n\n")[0]
    )


@pytest.mark.slow
def test_the_report_of_the_demo_says_of_every_domain_what_became_of_it_and_how_sure_that_is(
    tmp_path: Path,
):
    demo(tmp_path / "demo")
    claims = make_page(read_sources([tmp_path / "demo"]), "demo").sections[0].blocks
    told = [one for one in claims if isinstance(one, Claim) and one.about]
    assert {one.about for one in told} == {f"loss on {name}" for name in DOMAINS}
    assert all("95 % interval" in one.detail for one in told)
    assert all(one.finding in ("better", "worse", "unclear") for one in told)
