"""``moesaic check`` tells what is in a folder, and exits with 1 if it is not sound."""

import json
import os
import sys
from pathlib import Path

import pytest

from moesaic.checkpoint.fresh import write_fresh
from moesaic.cli.main import main
from moesaic.config.presets import TINY_V2


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Exit status of ``moesaic check`` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["moesaic", "check", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    write_fresh(path, TINY_V2, "bfloat16", 0, lambda spec: None)
    return path


def test_a_sound_folder_is_described(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    assert run(monkeypatch, folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{folder}: deepseek_v2, 4 layers, 64 experts"
    assert lines[1] == "3.34 M parameters | 622 tensors (622 BF16) | files: 1 | 6.7 MB"
    assert lines[2] == "sound"
    assert lines[3] == f"digest {json.loads((folder / 'digest.json').read_text())['root']}"


def test_json_says_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    assert run(monkeypatch, folder, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {
        "folder": str(folder),
        "sound": True,
        "digest": json.loads((folder / "digest.json").read_text())["root"],
        "model_type": "deepseek_v2",
        "parameters": 3_339_520,
        "tensors": 622,
        "bytes": 2 * 3_339_520,
        "types": {"BF16": 622},
        "files": ["model.safetensors"],
        "problems": [],
        "warnings": [],
        "ignored": [],
    }


def test_a_damaged_folder_is_not_sound(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert run(monkeypatch, folder, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["sound"], found["digest"]) == (False, None)
    assert found["problems"][0]["kind"] == "damaged"
    assert run(monkeypatch, folder) == 1
    printed = capsys.readouterr().out
    assert "cut short: fetch it again" in printed
    assert printed.endswith("not sound\n")


def test_verifying_finds_a_byte_that_changed_unseen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    weights = folder / "model.safetensors"
    stat, content = weights.stat(), bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert run(monkeypatch, folder) == 0
    assert run(monkeypatch, folder, "--verify") == 1
    assert "changed since digest.json was written" in capsys.readouterr().out


def test_a_folder_that_is_none_is_a_wrong_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, tmp_path / "nowhere") == 2
    assert "nowhere is not a folder; give the folder of a checkpoint" in capsys.readouterr().err
