"""``moesaic launch`` prints the command of another engine, or becomes it."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

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
    config = tiny_config("v3", vocab_size=300)
    save(tmp_path / "model", config, random_model(config).state_dict(), "bfloat16")
    train_bpe(["one two three four. " * 20], 300).save(tmp_path / "model")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moesaic", "launch", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return call


def test_the_command_is_printed_as_a_shell_takes_it(run: Run):
    status, printed, _ = run("model", "--on", "vllm", "--gpus", "2", "--redundant", "2")
    assert status == 0
    note, command = printed.splitlines()
    assert note.startswith("# ")
    words = shlex.split(command)
    assert words[:3] == ["vllm", "serve", "model"]
    assert '{"num_redundant_experts": 2}' in words


def test_every_machine_has_a_line(run: Run):
    asked = ("--nodes", "2", "--gpus", "2", "--set", "first_address=a.b")
    status, printed, _ = run("model", "--on", "sglang", *asked)
    assert status == 0
    assert "# on machine 1\n" in printed
    status, printed, _ = run("model", "--on", "sglang", *asked, "--json")
    told = json.loads(printed)
    assert (told["kind"], told["engine"], len(told["commands"])) == ("launch", "sglang", 2)
    assert told["need"]["weights"] > 0


def test_a_wrong_engine_and_a_wrong_folder_are_told(run: Run):
    assert "did you mean 'vllm'?" in run("model", "--on", "vlm")[2]
    status, _, told = run("none", "--on", "vllm")
    assert status == 2
    assert "none" in told


def test_run_becomes_the_command_of_this_machine(run: Run, tmp_path: Path):
    assert run("model", "--on", "vllm")[0] == 0
    engine = tmp_path / "vllm"
    engine.write_text('#!/bin/sh\necho "$@"\nexit 7\n')
    engine.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    words = ["-m", "moesaic", "launch", "model", "--on", "vllm", "--run"]
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 7, done.stderr
    assert done.stdout.startswith("serve model --served-model-name model ")


def test_an_engine_that_is_not_installed_is_told(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    status, _, told = run("model", "--on", "vllm", "--run")
    assert status == 2
    assert "vllm could not be started (No such file or directory); install the engine" in told
