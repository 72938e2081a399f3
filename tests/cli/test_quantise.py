"""``moesaic quantise`` writes a folder in fewer bits and shows how far it is from the original."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from models import random_model
from small_tasks import words

from moesaic.checkpoint.load import Reader
from moesaic.checkpoint.save import save
from moesaic.cli.main import main
from moesaic.config.model import ModelConfig
from moesaic.data.bpe import train_bpe

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    tmp_path: Path,
    tiny_config: Callable[..., ModelConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """``run(*arguments)``: status, output and messages of ``moesaic`` beside a model and a text."""
    config = tiny_config("v2", vocab_size=300, hidden_size=64, moe_intermediate_size=64)
    save(tmp_path / "model", config, random_model(config).state_dict(), "float32")
    train_bpe(["one two three four five six seven eight nine ten. " * 20], 300).save(
        tmp_path / "model"
    )
    (tmp_path / "text.txt").write_text(words(400, seed=1))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moesaic", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return call


def test_the_new_folder_is_read_by_other_commands(run: Run):
    status, printed, _ = run("quantise", "model", "--out", "small", "--bits", "8")
    assert status == 0
    assert "sound" in printed
    assert "linear layers quantised | " in printed
    assert "of the original's bytes" in printed
    assert run("check", "small")[0] == 0
    status, printed, _ = run("generate", "small", "one two", "--max-new-tokens", "3")
    assert status == 0
    assert printed


def test_the_comparison_is_printed_and_kept(run: Run):
    compare = ("--against-data", "text.txt", "--set", "tokens=200", "--set", "row=64")
    status, printed, told = run("quantise", "model", "--out", "four", *compare)
    assert status == 0, told
    assert "KL(original ‖ quantised), nats" in printed
    assert "the same first choice" in printed
    status, printed, told = run(
        "quantise", "model", "--out", "eight", "--bits", "8", *compare, "--json"
    )
    assert status == 0, told
    eight = json.loads(printed)
    assert eight == json.loads(Path("eight/accuracy.json").read_text())
    four = json.loads(Path("four/accuracy.json").read_text())
    assert eight["kind"] == "quantisation"
    assert eight["digest"]
    assert 0 < eight["quantised"] < eight["linear"]  # kv_b_proj stays
    assert 0 < eight["agreement"]["divergence"]["value"] < four["agreement"]["divergence"]["value"]
    assert eight["layers"][0]["error"] < four["layers"][0]["error"]
    assert eight["agreement"]["tokens"] >= 200


def test_an_unknown_form_is_told(run: Run):
    status, _, told = run("quantise", "model", "--out", "small", "--bits", "3")
    assert status == 2
    assert "--bits 3 is not one of 8, 4, fp8; choose one of them" in told
    assert not Path("small").exists()


def test_data_that_is_missing_is_told_before_anything_is_written(run: Run):
    status, _, _ = run("quantise", "model", "--out", "small", "--against-data", "none.txt")
    assert status == 2
    assert not Path("small").exists()


def test_a_smaller_group_is_set(run: Run):
    assert run("quantise", "model", "--out", "small", "--set", "group=32")[0] == 0
    groups = Reader("small").config.model_dump()["quantization_config"]["config_groups"]
    assert groups["group_0"]["weights"]["group_size"] == 32
