"""``moesaic serve`` answers until it is stopped."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from moesaic.checkpoint.save import save
from moesaic.cli.main import main
from moesaic.config.model import ModelConfig
from moesaic.data.bpe import train_bpe
from moesaic.model.build import build_model


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., ModelConfig]
) -> Path:
    path = tmp_path_factory.mktemp("serve") / "model"
    config = tiny_config("v2", vocab_size=300)
    save(path, config, build_model(config, seed=1).state_dict(), "float32")
    train_bpe(["one two three four five, " * 20], 300).save(path)
    return path


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
def test_a_wrong_setting_is_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    change: str,
    message: str,
):
    monkeypatch.setattr(sys, "argv", ["moesaic", "serve", str(folder), "--set", change])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
