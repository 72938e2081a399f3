"""``moesaic init`` writes a checkpoint of random weights, whatever its size."""

import json
import sys
from pathlib import Path

import pytest

from moesaic.cli.main import main
from moesaic.config.presets import TINY_V3
from moesaic.config.published import read_config


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Exit status of ``moesaic init`` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["moesaic", "init", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_a_preset_becomes_a_sound_checkpoint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, "tiny-v3", tmp_path / "new") == 0
    printed = capsys.readouterr()
    assert "4.20 M parameters | 845 tensors (841 BF16, 4 F32) | files: 1 | 9.5 MB" in printed.out
    root = json.loads((tmp_path / "new" / "digest.json").read_text())["root"]
    assert printed.out.endswith(f"sound\ndigest {root}\n")
    assert "tiny-v3" in printed.err
    assert "100%" in printed.err
    assert read_config(tmp_path / "new") == TINY_V3


def test_the_same_seed_gives_the_same_weights(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    digests = []
    for folder, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert run(monkeypatch, "tiny", tmp_path / folder, "--seed", seed) == 0
        digests.append(capsys.readouterr().out.splitlines()[-1])
    assert digests[0] == digests[1] != digests[2]


def test_weights_are_written_in_the_type_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, "tiny", tmp_path / "new", "--dtype", "float8_e4m3fn") == 0
    assert "(604 F32, 604 F8_E4M3, 18 BF16)" in capsys.readouterr().out


def test_a_folder_with_something_in_it_is_refused_and_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert run(monkeypatch, "tiny", tmp_path) == 2
    assert f"{tmp_path} is not empty; give a new folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tyny"], "did you mean 'tiny'?"),
        (["tiny", "--dtype", "int8"], "dtype='int8' is not one of bfloat16, float16, float32"),
    ],
)
def test_what_does_not_exist_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    assert run(monkeypatch, arguments[0], tmp_path / "new", *arguments[1:]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
