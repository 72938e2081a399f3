"""``moesaic serve`` answers until it is stopped."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from socket import socket

import openai
import pytest

from moesaic.checkpoint.save import save
from moesaic.cli.main import main
from moesaic.config.model import ModelConfig
from moesaic.data.bpe import train_bpe
from moesaic.model.build import build_model

Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., ModelConfig]
) -> Path:
    path = tmp_path_factory.mktemp("serve") / "model"
    config = tiny_config("v2", vocab_size=300)
    save(path, config, build_model(config, seed=1).state_dict(), "float32")
    train_bpe(["one two three four five, " * 20], 300).save(path)
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``run(folder, "--port", "0")``: status and messages of a server that does not begin."""

    def call(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["moesaic", "serve", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0), capsys.readouterr().err

    return call


def test_a_folder_is_served_until_it_is_interrupted(folder: Path):
    command = [sys.executable, "-m", "moesaic", "serve", str(folder), "--port", "0", "--json"]
    settings = ["--set", "dtype=float32", "--set", "cache_tokens=512", "--set", 'api_keys=["k"]']
    with subprocess.Popen([*command, *settings], stdout=subprocess.PIPE) as process:
        assert process.stdout
        told = json.loads(process.stdout.readline())
        assert told["model"] == "model"
        assert told["settings"]["cache_tokens"] == 512
        assert "api_keys" not in told["settings"]
        with openai.OpenAI(base_url=told["url"], api_key="k", max_retries=0) as client:
            answer = client.completions.create(model="model", prompt="one two", max_tokens=4)
        assert answer.usage
        assert answer.usage.completion_tokens <= 4
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("cache_tokens=8", "cache_tokens=8 is less than a block of 32; raise it"),
        ("max_runing=8", "max_runing is not a setting; did you mean 'max_running'?"),
        ("api_keys=['a b']", "api_keys.0='a b' is not allowed"),
    ],
)
def test_a_wrong_setting_is_told(run: Run, folder: Path, change: str, message: str):
    status, told = run(folder, "--set", change)
    assert status == 2
    assert message in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--port", "70000"), "port 70000 of 127.0.0.1 cannot be had (bind(): port must be 0-65"),
        (("--host", "1.1.1.1"), "of 1.1.1.1 cannot be had (Cannot assign requested address)"),
    ],
)
def test_a_port_that_cannot_be_had_is_told_before_the_model_is_read(
    run: Run, tmp_path: Path, options: tuple[str, str], message: str
):
    status, told = run(tmp_path / "nowhere", *options)
    assert status == 2
    assert message in told
    assert told.endswith(
        "give another with --port, or 0 for any, and with --host an address of this machine\n"
    )
    assert told.count("\n") == 1


def test_a_port_that_is_taken_is_told_in_the_same_way(run: Run, tmp_path: Path):
    with socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, told = run(tmp_path / "nowhere", "--port", str(taken.getsockname()[1]))
    assert status == 2
    assert "of 127.0.0.1 cannot be had (Address already in use); give another with --port" in told


def test_a_cache_that_is_larger_than_the_memory_is_told(run: Run, folder: Path):
    status, told = run(folder, "--port", "0", "--set", "cache_tokens=1000000000000000")
    assert status == 1
    assert "the memory does not suffice for " in told
    assert told.count("\n") == 1
