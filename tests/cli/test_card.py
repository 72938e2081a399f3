"""``moesaic card``: scores of the very checkpoint, and fields, in its README.md."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from moesaic.checkpoint.digest import digest
from moesaic.checkpoint.fresh import write_fresh
from moesaic.checkpoint.markdown import read_card
from moesaic.cli.main import main
from moesaic.config.presets import get_preset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shape = get_preset("tiny-v3").changed(hidden_size=32, num_hidden_layers=2, vocab_size=64)
    write_fresh(tmp_path / "model", shape, "bfloat16", 0, lambda spec: None)
    return tmp_path / "model"


def results(path: Path, of: str) -> Path:
    metric: dict[str, Any] = {"value": 0.25, "stderr": 0.05, "low": 0.15, "high": 0.35}
    task = {"n": 80, "description": {}, "metrics": {"exact_match": metric}}
    content = {
        "kind": "evaluation",
        "model": {"folder": "model", "digest": of},
        "settings": {},
        "tasks": {"gsm8k": task},
    }
    path.write_text(json.dumps(content))
    return path


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["moesaic", "card", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_scores_and_fields_are_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    found = results(tmp_path / "results.json", digest(folder))
    assert call(monkeypatch, folder, "--results", found, "--set", "license=mit", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"card": str(folder / "README.md"), "scores": 1, "fields": {"license": "mit"}}
    front, text = read_card(folder)
    assert front["license"] == "mit"
    assert "| `gsm8k` | `exact_match` | 80 | 0.25 | 0.15 to 0.35 |" in text


def test_scores_of_another_checkpoint_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    found, before = results(tmp_path / "results.json", "ab" * 32), read_card(folder)
    assert call(monkeypatch, folder, "--results", found) == 2
    told = capsys.readouterr().err
    assert f"is of a checkpoint with the digest abababababab, {folder} has" in told
    assert "evaluate this one" in told
    assert read_card(folder) == before


@pytest.mark.parametrize("text", ["{}", '{"kind": "routing"}', "[1]"])
def test_what_is_no_result_of_an_evaluation_is_refused(
    text: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    (tmp_path / "results.json").write_text(text)
    assert call(monkeypatch, folder, "--results", tmp_path / "results.json") == 2
    assert "results.json" in capsys.readouterr().err


def test_an_unknown_field_is_told_with_the_nearest_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    assert call(monkeypatch, folder, "--set", "licence=mit") == 2
    assert "licence is not a setting; did you mean 'license'?" in capsys.readouterr().err
