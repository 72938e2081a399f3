"""``moesaic place`` prints how even a placement is, and writes it."""

import json
import sys
from pathlib import Path

import pytest

from moesaic.cli.main import main

LOADS = [[8, 1, 1, 1], [1, 1, 1, 1]]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Exit status of ``moesaic place`` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["moesaic", "place", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.fixture
def loads(tmp_path: Path) -> Path:
    path = tmp_path / "loads.json"
    path.write_text(json.dumps(LOADS))
    return path


def test_the_placement_is_printed_and_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], loads: Path
):
    out = loads.with_name("placement.json")
    options = ("--devices", "2", "--redundant", "2", "--out", out, "--json")
    assert run(monkeypatch, loads, *options) == 0
    told = json.loads(capsys.readouterr().out)
    rows = [row["slots"] for row in told["layers"]]
    assert json.loads(out.read_text()) == {"physical_to_logical_map": rows}
    assert told["policy"] == "global"
    assert told["layers"][0]["in_order"] == pytest.approx(5.5 / 9)
    assert told["layers"][0]["placed"] > 0.85


def test_a_table_has_a_line_per_layer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], loads: Path
):
    assert run(monkeypatch, loads, "--devices", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "|" in lines[1]


def test_devices_that_do_not_come_out_even_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], loads: Path
):
    assert run(monkeypatch, loads, "--devices", "3") == 2
    assert "set redundant to 2" in capsys.readouterr().err
