"""Where the numbers of a run go besides its record, and what happens when that fails."""

import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moesaic.config.train import TrainConfig
from moesaic.errors import ConfigError
from moesaic.runlog import read_run
from moesaic.train.loop import train

Run = Callable[..., TrainConfig]


class Heard:
    """A display that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def step(self, seen: object) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def offline(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """trackio and wandb write below this folder, and nowhere else."""
    place = tmp_path_factory.getbasetemp() / "trackers"
    place.mkdir(exist_ok=True)
    monkeypatch.setenv("TRACKIO_DIR", str(place / "trackio"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(place / "wandb"))
    return place


def test_tensorboard_files_are_written_when_asked_for(run: Run):
    config = run(logging={"to": ["tensorboard"]})
    train(config)
    (events,) = (Path(config.folder) / "tensorboard").iterdir()
    assert b"step/next_token" in events.read_bytes()
    assert b"evaluation/bits_per_byte/lines" in events.read_bytes()


def test_trackio_has_every_step_of_a_run_that_was_stopped_and_taken_up(
    run: Run, offline: Path, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("trackio")
    config = run("stopped", logging={"to": ["trackio"], "project": "stopped-and-taken-up"})
    left = iter([False] * 3)
    train(config, stop=lambda: next(left, True))
    assert not train(config).interrupted
    (database,) = (offline / "trackio").rglob("stopped-and-taken-up*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT run_name, step FROM metrics").fetchall()
    connection.close()
    assert len({name for name, _ in rows}) == 1
    assert {step for _, step in rows} == set(range(1, 9))
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_wandb_files_are_written_when_asked_for(run: Run, offline: Path):
    pytest.importorskip("wandb")
    config = run(logging={"to": ["wandb"]})
    train(config)
    (events,) = (Path(config.folder) / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"step/next_token" in events.read_bytes()
    assert b"evaluation/loss/lines" in events.read_bytes()


def test_what_fails_under_way_is_told_of_once_and_the_run_goes_on(
    run: Run, monkeypatch: pytest.MonkeyPatch
):
    from torch.utils.tensorboard import SummaryWriter

    def fail(self: object, name: str, value: float, step: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", fail)
    config, heard = run(logging={"to": ["tensorboard"]}), Heard()
    assert train(config, display=heard).step == 8
    (told,) = [text for text in heard.said if "tensorboard" in text]
    assert told.startswith("tensorboard failed and gets nothing more from this run")
    record = read_run(Path(config.folder) / "record.jsonl")
    (line,) = record.of("left out")
    assert (line["writer"], line["problem"]) == ("tensorboard", "OSError: no space left on device")
    assert [line["step"] for line in record.of("step")] == list(range(1, 9))


def test_what_does_not_start_ends_the_run_before_its_first_step(
    run: Run, monkeypatch: pytest.MonkeyPatch
):
    def fail(self: object, *args: object, **kwargs: object) -> None:
        raise OSError("read-only file system")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.__init__", fail)
    with pytest.raises(ConfigError) as error:
        train(run(logging={"to": ["tensorboard"]}))
    assert "'tensorboard', which does not start (read-only file system); see to that" in str(
        error.value
    )


def test_a_package_that_is_missing_is_told_before_anything_is_made(
    run: Run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = run(logging={"to": ["wandb"]})
    with pytest.raises(ConfigError) as error:
        train(config)
    assert "logging.to names 'wandb', which is not installed; pip install 'moesaic[track]'" in str(
        error.value
    )
    assert not Path(config.folder).exists()


def test_the_setting_of_before_says_what_replaced_it(run: Run):
    with pytest.raises(ConfigError) as error:
        run(logging={"tensorboard": True})
    assert "replace tensorboard = true by to = ['tensorboard']" in str(error.value)
