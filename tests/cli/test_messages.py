"""What parts below say while a command runs goes to the standard error, and only that."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from models import random_model

from moesaic.checkpoint.save import save
from moesaic.cli.messages import messages
from moesaic.config.model import ModelConfig
from moesaic.data.bpe import train_bpe

LOG = logging.getLogger("moesaic.some.part")
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path, tiny_config: Callable[..., ModelConfig]) -> Run:
    """``run("generate", ...)``: a command beside a folder ``model``, where there is no compiler."""
    config = tiny_config("v3", vocab_size=300)
    save(tmp_path / "model", config, random_model(config).state_dict(), "float32")
    train_bpe(["one two three four. " * 20], 300).save(tmp_path / "model")
    (tmp_path / "bin").mkdir()
    environment = {
        "PATH": str(tmp_path / "bin"),
        "HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
    }

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "moesaic", *arguments]
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return call


def test_a_command_without_a_compiler_says_once_what_that_costs(run: Run):
    done = run("generate", "model", "one two", "--max-new-tokens", "3", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('{"prompt": "one two"')
    [line] = done.stderr.splitlines()
    assert line.startswith("moesaic: nothing is compiled for this processor: no C++ compiler")
    assert line.endswith("apt install g++")


def test_a_command_that_computes_nothing_does_not_look_for_a_compiler(run: Run):
    done = run("plan", "tiny")
    assert (done.returncode, done.stderr) == (0, "")
    assert run("generate", "--help").stderr == ""


def test_warnings_are_printed_and_information_only_in_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    with messages():
        LOG.info("not for a file")
        LOG.warning("slow: %s", "no compiler")
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        LOG.info("a moment")
    LOG.warning("after the command")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "moesaic: slow: no compiler\nmoesaic: a moment\n"
