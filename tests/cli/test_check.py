"""``moesaic check`` tells what is in a folder, and exits with 1 if it is not sound."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moesaic.checkpoint.digest import digest
from moesaic.checkpoint.fresh import write_fresh
from moesaic.checkpoint.save import save
from moesaic.cli.main import main
from moesaic.config.lora import LoraConfig
from moesaic.config.model import ModelConfig
from moesaic.config.presets import TINY_V2
from moesaic.esft.adapter import write_adapter
from moesaic.esft.manifest import Work
from moesaic.esft.park import load_slice
from moesaic.esft.select import Selection
from moesaic.esft.shard import write_shard
from moesaic.model.adapt import adapt_, fresh_factors
from moesaic.model.build import build_model, load_model
from moesaic.planner.adapters import adapted_tensors


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


@pytest.fixture
def home(tmp_path: Path, tiny_config: Callable[..., ModelConfig]) -> Path:
    """A base with a shard and an adapter of it."""
    config, experts = tiny_config("v2"), {1: (5, 2), 2: (0, 3, 7)}
    base = tmp_path / "base"
    save(base, config, build_model(config, seed=5).state_dict(), "bfloat16")
    work = Work(base=digest(base), run={}, data=("math",), tokens=1200, steps=3)
    selection = Selection(experts=experts).natural(config)
    write_shard(tmp_path / "shard", load_slice(base, selection), selection, work)
    model, lora = load_model(base), LoraConfig(rank=2)
    make = fresh_factors(lora.rank, torch.Generator().manual_seed(0))
    adapt_(model, adapted_tensors(config, lora, experts), make, lora.scale, torch.float32)
    write_adapter(tmp_path / "adapter", model, lora, selection, work)
    return tmp_path


@pytest.mark.parametrize("kind", ["shard", "adapter"])
@pytest.mark.parametrize("with_base", [False, True])
def test_what_a_slice_made_is_described(
    with_base: bool,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    home: Path,
) -> None:
    options = ["--base", home / "base"] if with_base else []
    assert run(monkeypatch, home / kind, *options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{home / kind}: {kind} of base {digest(home / 'base')[:12]}, not signed"
    assert lines[1].startswith("5 experts in 2 layers | ")
    assert lines[2:4] == ["1.20 k tokens | 3 steps | math", "sound"]
    assert run(monkeypatch, home / kind, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["sound"], found["tokens"]) == (kind, True, 1200)
    assert lines[4] == f"digest {found['digest']}"


@pytest.mark.parametrize("kind", ["shard", "adapter"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("bytes", "does not have the sha256 that the manifest names; it was changed after"),
        ("names", "the tensors are not those that manifest.json names; they were changed"),
        ("base", "trained from base 777777777777, "),
        ("settings", "the manifest is damaged: fetch the"),
    ],
)
def test_what_was_changed_after_training_is_not_sound(
    change: str,
    message: str,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    home: Path,
) -> None:
    folder = home / kind
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    if change == "bytes":
        (tensors,) = folder.glob("*.safetensors")
        content = bytearray(tensors.read_bytes())
        content[-1] ^= 1
        tensors.write_bytes(content)
    elif change == "names":
        manifest["tensors"].popitem()
    elif change == "base":
        manifest["work"]["base"] = "7" * 64
    else:
        manifest["work"]["steps"] = -1
    path.write_text(json.dumps(manifest))
    options = ["--base", home / "base"] if change == "base" else []
    assert run(monkeypatch, folder, *options) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{folder}: not sound"
    assert message in lines[1]
    assert run(monkeypatch, folder, "--json", *options) == 1
    assert message in json.loads(capsys.readouterr().out)["problem"]


def test_an_adapter_from_elsewhere_is_looked_at_as_far_as_it_says_something(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    (home / "adapter" / "manifest.json").unlink()
    assert run(monkeypatch, home / "adapter", "--base", home / "base") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{home / 'adapter'}: adapter of PEFT, without a manifest.json"
    assert lines[2] == "sound"


def test_a_checkpoint_has_no_base(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    assert run(monkeypatch, folder, "--base", folder) == 2
    assert "is a checkpoint, which has no --base; leave that out" in capsys.readouterr().err
