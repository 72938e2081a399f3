"""Run files and the changes of the command line."""

from pathlib import Path

import pytest

from moesaic.config.load import read_run_file
from moesaic.config.train import TrainConfig
from moesaic.errors import ConfigError

RUN = """
folder = "runs/x"
model = "tiny-v3"
steps = 10
batch.rows = 8

[data]
seq_len = 32
[[data.sources]]
path = "corpus:rust"
[[data.sources]]
path = "corpus:math"
weight = 2.0

[schedule]
learning_rate = 3e-4
warmup_steps = 2

[evaluation]
every_steps = 5
rows = 4
[evaluation.domains]
rust = "corpus:rust"
math = { path = "corpus:math", split = "all" }
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    return path


def read(path: Path, *changes: str) -> TrainConfig:
    return read_run_file(TrainConfig, path, changes)


def refusal(path: Path, *changes: str) -> str:
    with pytest.raises(ConfigError) as error:
        read(path, *changes)
    return str(error.value)


def test_a_run_file_is_the_settings_it_names(run_file: Path):
    config = read(run_file)
    assert config.steps == 10
    assert config.batch.rows.start == 8
    assert config.schedule.learning_rate.start == 3e-4
    assert config.evaluation is not None
    assert config.evaluation.domains["rust"].split == "held_out"
    assert config.evaluation.domains["math"].split == "all"


def test_changes_are_applied_in_order_and_read_as_toml(run_file: Path):
    config = read(
        run_file,
        "steps=20",
        "steps = 30",
        "folder=runs/other",
        'tokenizer="a b"',
        "balance.bias_speed=0.001",
        "data.sources.1.weight=5.0",
        "recompute=true",
        'schedule.learning_rate={start=1e-3, changes=[{at="50%", times=0.5}]}',
    )
    assert (config.steps, config.folder, config.tokenizer) == (30, "runs/other", "a b")
    assert config.balance.bias_speed is not None
    assert config.data.sources[1].weight == 5.0
    assert config.recompute
    assert config.schedule.learning_rate.changes[0].times == 0.5


def test_an_unknown_setting_is_named_with_the_nearest_one(run_file: Path):
    message = refusal(run_file, "schedule.warmup=5")
    assert message == (
        f"{run_file}: schedule.warmup is not a setting; did you mean 'schedule.warmup_steps'?"
    )
    assert "did you mean 'schedule'?" in refusal(run_file, "shedule.warmup_steps=5")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("steps", "--set steps: not a setting and its value; write it as steps=VALUE"),
        ("=5", "--set =5: not a setting and its value"),
        ("a..b=5", "--set a..b=5: not a setting and its value"),
        ("steps.more=5", "steps is 10 and has no settings inside; write steps=… to replace it"),
        ("data.sources.2.weight=5", "'2' is no entry of a list of 2; entries are numbered from 0"),
        ("data.sources.first.weight=5", "'first' is no entry of a list of 2"),
        ("steps=many", "steps='many' is not allowed; it should be a valid integer"),
        ("steps=0", "steps=0 is not allowed; it should be greater than 0"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused_with_the_fix(
    change: str, told: str, run_file: Path
):
    assert told in refusal(run_file, change)


def test_a_missing_file_is_told(tmp_path: Path):
    message = refusal(tmp_path / "no.toml")
    assert "no.toml is not a file; give a run file, like moesaic/recipes/tiny.toml" in message


def test_a_file_that_is_not_toml_is_told_with_the_line(tmp_path: Path):
    path = tmp_path / "bad.toml"
    path.write_text("steps = 5\nmodel : tiny")
    assert "bad.toml is not TOML" in refusal(path)
    assert "line 2" in refusal(path)
