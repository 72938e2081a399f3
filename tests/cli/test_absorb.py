"""``moesaic absorb``: an adapter becomes part of a checkpoint."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moesaic.checkpoint.digest import digest
from moesaic.checkpoint.save import save
from moesaic.cli.main import main
from moesaic.config.data import DataConfig
from moesaic.config.lora import LoraConfig
from moesaic.config.model import ModelConfig
from moesaic.data.bpe import train_on_sources
from moesaic.esft.adapter import write_adapter
from moesaic.esft.manifest import Work
from moesaic.esft.select import Selection
from moesaic.esft.undo import undo_merge
from moesaic.model.adapt import adapt_, fresh_factors
from moesaic.model.build import build_model
from moesaic.planner.adapters import adapted_tensors


@pytest.fixture
def home(tmp_path: Path, tiny_config: Callable[..., ModelConfig]) -> Path:
    """A checkpoint and a fresh adapter of it, which adds nothing."""
    config, experts = tiny_config("v2", vocab_size=300), {1: (5, 2)}
    model, lora = build_model(config, seed=5), LoraConfig(rank=2)
    save(tmp_path / "base", config, model.state_dict(), "bfloat16")
    make = fresh_factors(lora.rank, torch.Generator().manual_seed(0))
    adapt_(model, adapted_tensors(config, lora, experts), make, lora.scale, torch.float32)
    work = Work(base=digest(tmp_path / "base"), run={}, data=("math",), tokens=0, steps=0)
    write_adapter(tmp_path / "adapter", model, lora, Selection(experts=experts), work)
    return tmp_path


def _absorb(monkeypatch: pytest.MonkeyPatch, home: Path, *options: str) -> int:
    folders = [str(home / "base"), str(home / "adapter"), "--out", str(home / "merged")]
    monkeypatch.setattr(sys, "argv", ["moesaic", "absorb", *folders, *options])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_absorb_writes_a_checkpoint_and_prints_its_record(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _absorb(monkeypatch, home, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["folder"] == str(home / "merged")
    assert found["base"] == found["digest"] == digest(home / "base")
    assert found["adapter"]["lora"]["rank"] == 2
    assert digest(home / "merged", verify=True) == digest(home / "base")


def test_absorb_takes_the_conditions_of_a_merge(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "text.txt").write_text("one two three. " * 20)
    data = DataConfig.parse({"sources": [{"path": str(home / "text.txt")}], "seq_len": 16})
    train_on_sources(data, 300).save(home / "base")
    options = ("--retain", str(home / "text.txt"), "--set", "retain.tokens=64")
    assert _absorb(monkeypatch, home, *options, "--set", "keep_undo=true") == 0
    assert "retained " in (told := capsys.readouterr().out)
    assert "(+0.0000)" in told
    assert undo_merge(home / "merged", home / "back") == digest(home / "base")
    shutil.rmtree(home / "merged")
    assert _absorb(monkeypatch, home, "--trust", str(home / "no.pub")) != 0
    assert "no.pub cannot be read" in capsys.readouterr().err
    assert not (home / "merged").exists()


def test_absorb_says_what_is_wrong_with_an_adapter(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "adapter" / "adapter_config.json").unlink()
    assert _absorb(monkeypatch, home) != 0
    assert "adapter_config.json is missing; give the folder" in capsys.readouterr().err
    assert not (home / "merged").exists()
