"""``moesaic export`` writes one file that llama.cpp runs, and says what is in it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from models import random_model

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
    """``run(*arguments)``: status, output and messages of ``moesaic`` beside a model."""
    config = tiny_config("v3", vocab_size=300, hidden_size=32, moe_intermediate_size=32)
    save(tmp_path / "model", config, random_model(config).state_dict(), "float32")
    train_bpe(["one two three four five six seven eight nine ten. " * 20], 300).save(
        tmp_path / "model"
    )
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moesaic", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return call


def test_the_file_is_written_and_what_differs_is_told(run: Run):
    status, printed, _ = run("export", "model", "files/model.gguf", "--form", "q8_0")
    assert status == 0
    assert printed.startswith("files/model.gguf | deepseek2 | q8_0 | ")
    assert "text cut as deepseek-v3" in printed
    assert "note: the prediction modules are left out" in printed
    assert gguf.GGUFReader("files/model.gguf").fields["general.file_type"].contents() == 7


def test_without_a_tokenizer_the_file_takes_token_ids(run: Run):
    Path("model/tokenizer.json").unlink()
    status, printed, _ = run("export", "model", "model.gguf", "--json")
    assert status == 0
    told = json.loads(printed)
    assert told["kind"] == "export"
    assert told["pre_tokenizer"] is None
    assert told["n_bytes"] == Path("model.gguf").stat().st_size
    assert len(gguf.GGUFReader("model.gguf").tensors) == told["tensors"]


def test_an_unknown_form_is_told(run: Run):
    status, _, told = run("export", "model", "model.gguf", "--form", "q4_k")
    assert status == 2
    assert "--form q4_k is not one of f32, f16, bf16, q8_0, q4_0; did you mean 'q4_0'?" in told
    assert not Path("model.gguf").exists()
