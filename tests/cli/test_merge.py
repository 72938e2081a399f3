"""``moesaic train`` with a table [esft], and ``moesaic merge`` of what it makes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moesaic.checkpoint.digest import digest
from moesaic.checkpoint.save import save
from moesaic.cli.main import main
from moesaic.config.data import DataConfig
from moesaic.config.model import ModelConfig
from moesaic.data.bpe import train_on_sources
from moesaic.esft.shard import read_manifest
from moesaic.model.build import build_model

Run = Callable[..., tuple[int, str, str]]

_RUN_FILE = """
folder = "{folder}/{name}"
model = "{folder}/base"
steps = 2
device = "cpu"

[esft]
experts = 3
score_tokens = 200

[data]
seq_len = 32
sources = [{{ path = "{folder}/text.txt", separator = "\\n" }}]

[batch]
rows = 2

[schedule]
learning_rate = 1e-2
"""


@pytest.fixture
def run(
    tmp_path: Path,
    tiny_config: Callable[..., ModelConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """``run(*arguments)``: status, output and messages of ``moesaic``, beside a base."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {n} has {n * n % 89} words.\n" for n in range(200)))
    config = tiny_config("v2", vocab_size=300)
    save(tmp_path / "base", config, build_model(config).state_dict(), "bfloat16")
    data = DataConfig.parse({"sources": [{"path": str(text), "split": "all"}], "seq_len": 32})
    train_on_sources(data, 300).save(tmp_path / "base")

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moesaic", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return call


def _train(run: Run, folder: Path, name: str, *arguments: str) -> Path:
    (folder / f"{name}.toml").write_text(_RUN_FILE.format(folder=folder, name=name))
    status, printed, told = run("train", folder / f"{name}.toml", "--json", *arguments)
    assert status == 0, told
    return Path(json.loads(printed)["shard"])


def test_a_run_file_with_an_esft_table_makes_a_shard(run: Run, tmp_path: Path) -> None:
    shard = _train(run, tmp_path, "one")
    manifest = read_manifest(shard)
    assert manifest.work.base == digest(tmp_path / "base")
    assert {len(ids) for ids in manifest.selection.experts.values()} == {3}
    assert not (tmp_path / "one" / "model").exists()


def test_shards_are_merged_into_a_checkpoint_that_generates(run: Run, tmp_path: Path) -> None:
    shards = [
        _train(run, tmp_path, "one"),
        _train(run, tmp_path, "two", "--set", "data.seed=1", "--set", "steps=3"),
    ]
    status, printed, _ = run("merge", tmp_path / "base", *shards, "--out", tmp_path / "merged")
    assert status == 0
    assert f"{tmp_path / 'merged'}: 2 shards, 320 tokens | " in printed
    assert printed.endswith(f"digest {digest(tmp_path / 'merged', verify=True)}\n")
    for shard, told in zip(shards, ("128 tokens | 2 steps", "192 tokens | 3 steps"), strict=True):
        line = f"{read_manifest(shard).digest[:12]}  {told} | {tmp_path / 'text.txt'}"
        assert line in printed
    status, printed, _ = run("generate", tmp_path / "merged", "Line", "--max-new-tokens", "4")
    assert status == 0
    assert run("check", tmp_path / "merged")[0] == 0


def test_json_is_the_record(run: Run, tmp_path: Path) -> None:
    shard = _train(run, tmp_path, "one")
    out = tmp_path / "merged"
    status, printed, _ = run("merge", tmp_path / "base", shard, "--out", out, "--json")
    assert status == 0
    assert json.loads(printed) == {
        "folder": str(out),
        **json.loads((out / "merge.json").read_text()),
    }


def test_a_shard_of_another_base_is_refused_on_one_line(run: Run, tmp_path: Path) -> None:
    shard = _train(run, tmp_path, "one")
    assert run("merge", tmp_path / "base", shard, "--out", tmp_path / "merged")[0] == 0
    status, printed, told = run("merge", tmp_path / "merged", shard, "--out", tmp_path / "twice")
    assert (status, printed) == (2, "")
    assert "manifest.json: trained from base" in told
    assert not (tmp_path / "twice").exists()
