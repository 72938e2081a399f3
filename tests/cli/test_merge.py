"""``moesaic train`` with a table [esft], and ``moesaic merge`` of what it makes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from moesaic.checkpoint.digest import digest
from moesaic.checkpoint.save import save
from moesaic.cli.main import main
from moesaic.config.data import DataConfig
from moesaic.config.model import ModelConfig
from moesaic.data.bpe import train_on_sources
from moesaic.esft.shard import ShardManifest
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
    manifest = ShardManifest.read(shard)
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
        line = f"{ShardManifest.read(shard).digest[:12]}  {told} | {tmp_path / 'text.txt'}"
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


def _two_shards(run: Run, folder: Path) -> list[Path]:
    return [
        _train(run, folder, "one"),
        _train(run, folder, "two", "--set", "data.seed=1", "--set", "steps=3"),
    ]


def test_where_shards_overlap_is_told_and_shown(run: Run, tmp_path: Path) -> None:
    shards = _two_shards(run, tmp_path)
    held = [ShardManifest.read(shard).selection.experts for shard in shards]
    both = sum(len(set(ids) & set(held[1][layer])) for layer, ids in held[0].items())
    status, printed, _ = run("merge", tmp_path / "base", *shards, "--out", tmp_path / "merged")
    assert status == 0
    assert f"2 shards overlap in {both} experts; their changes " in printed
    row = next(line.split() for line in printed.splitlines() if line.strip().startswith("all "))
    overall = json.loads((tmp_path / "merged" / "merge.json").read_text())["overlap"]
    assert row[1:3] == [str(both), "0"]
    assert float(row[3]) == pytest.approx(overall["cosine"], abs=0.005)
    assert row[5] == f"{overall['opposed']:.1%}"


def test_a_merge_with_a_method_is_undone(run: Run, tmp_path: Path) -> None:
    shards, base, merged = _two_shards(run, tmp_path), tmp_path / "base", tmp_path / "merged"
    options = ("--method", "ties", "--set", "density=0.5", "--set", "keep_undo=true")
    assert run("merge", base, *shards, "--out", merged, *options)[0] == 0
    config = json.loads((merged / "merge.json").read_text())["config"]
    assert config == {"method": "ties", "density": 0.5, "keep_undo": True}
    status, printed, _ = run("undo", merged, "--out", tmp_path / "back")
    assert (status, printed) == (
        0,
        f"{tmp_path / 'back'}: the base of {merged}\ndigest {digest(base)}\n",
    )
    status, printed, _ = run("undo", merged, "--out", tmp_path / "again", "--json")
    assert json.loads(printed) == {"folder": str(tmp_path / "again"), "digest": digest(base)}
    status, _, told = run("undo", base, "--out", tmp_path / "none")
    assert status == 2
    assert "has no merge.json or adapter.json; give the folder of a merged checkpoint" in told


def test_what_is_retained_is_told_or_the_merge_refused(run: Run, tmp_path: Path) -> None:
    shard, base = _train(run, tmp_path, "one"), tmp_path / "base"
    retain = ("--retain", str(tmp_path / "text.txt"), "--set", "retain.device=cpu")
    bound = ("--set", "retain.most_rise=9")
    status, printed, _ = run("merge", base, shard, "--out", tmp_path / "a", *retain, *bound)
    assert status == 0
    (one,) = json.loads((tmp_path / "a" / "merge.json").read_text())["retained"].values()
    assert f"text.txt: loss {one['before']:.4f} → {one['after']:.4f} (" in printed
    worse = ("--method", "sum", "--set", "scale=1e36")
    status, printed, told = run("merge", base, shard, "--out", tmp_path / "b", *retain, *worse)
    assert (status, printed) == (2, "")
    assert "the merge is refused and nothing was written: the loss on " in told
    assert not list(tmp_path.glob("b.*"))
    assert not (tmp_path / "b").exists()


def test_a_shard_is_signed_by_a_run_and_merged_if_its_key_is_trusted(
    run: Run, tmp_path: Path
) -> None:
    key = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    (tmp_path / "key.pub").write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    signed = _train(run, tmp_path, "one", "--set", f"esft.sign_with={tmp_path / 'key.pem'}")
    plain = _train(run, tmp_path, "two", "--set", "data.seed=1")
    base, trust = tmp_path / "base", ("--trust", tmp_path / "key.pub")
    status, printed, _ = run("merge", base, signed, "--out", tmp_path / "merged", *trust)
    assert status == 0
    assert f" | signed with {key.public_key().public_bytes_raw().hex()[:12]}\n" in printed
    status, _, told = run("merge", base, signed, plain, "--out", tmp_path / "both", *trust)
    assert status == 2
    assert "is not signed, and only shards signed with a trusted key are merged here" in told


def test_a_key_that_cannot_be_read_is_refused_before_training(run: Run, tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(_RUN_FILE.format(folder=tmp_path, name="one"))
    missing = f"esft.sign_with={tmp_path / 'none.pem'}"
    status, _, told = run("train", tmp_path / "one.toml", "--set", missing)
    assert status == 2
    assert "none.pem cannot be read (No such file or directory); make one with: openssl" in told
    assert not (tmp_path / "one" / "record.jsonl").exists()
