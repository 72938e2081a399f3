"""`moesaic demo`: the whole job, in a few steps."""

import subprocess
import sys
from pathlib import Path

import pytest

from moesaic.checkpoint.check import check


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
    for part in ("base/model", "slice/shard", "merged"):
        assert str(tmp_path / "demo" / part) in told
    assert check(tmp_path / "demo" / "merged").is_sound
    again = demo(tmp_path / "demo").stdout
    table = "held-out loss"
    assert (
        again[again.index(table) : again.index("6. ")]
        == told[told.index(table) : told.index("6. ")]
    )
