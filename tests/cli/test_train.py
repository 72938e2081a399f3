"""``moesaic train`` runs what a run file says, goes on where it was, and says how to."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moesaic.cli.main import main
from moesaic.config.load import read_run_file
from moesaic.config.model import ModelConfig
from moesaic.config.train import TrainConfig
from moesaic.errors import DataError
from moesaic.runlog import read_run

Start = Callable[..., int]
RECIPES = sorted((Path(__file__).parents[2] / "moesaic/recipes").glob("*.toml"))
FRESH = [path for path in RECIPES if read_run_file(TrainConfig, path).esft is None]


@pytest.fixture
def run_file(tmp_path: Path, tiny_config: Callable[..., ModelConfig]) -> Path:
    """A run of four small steps, in ``tmp_path/run``."""
    lines = [f"Line {n} is followed by {n + 1}, and {7 * n} is far away." for n in range(150)]
    (tmp_path / "lines.txt").write_text("\n\n".join(lines))
    model = tiny_config("v3", vocab_size=300, num_hidden_layers=2).model_dump(exclude_none=True)
    tables = "\n".join(f"model.{key} = {_toml(value)}" for key, value in model.items())
    source = _toml({"path": str(tmp_path / "lines.txt"), "separator": "\n\n"})
    held_out = _toml(
        {"path": str(tmp_path / "lines.txt"), "separator": "\n\n", "split": "held_out"}
    )
    path = tmp_path / "run.toml"
    path.write_text(
        f"""
        folder = "{tmp_path / "run"}"
        device = "cpu"
        steps = 4
        batch.rows = 2
        schedule.learning_rate = 1e-2
        data = {{ seq_len = 16, held_out_share = 0.2, sources = [{source}] }}
        evaluation = {{ every_steps = 9, rows = 2, domains = {{ lines = {held_out} }} }}
        {tables}
        """
    )
    return path


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(part)}" for key, part in value.items()) + " }"
    return json.dumps(value)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Start:
    """Exit status of ``moesaic train`` with these arguments."""

    def start(*arguments: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", ["moesaic", "train", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0)

    return start


def test_results_go_to_standard_output_and_progress_to_standard_error(
    start: Start, run_file: Path, capsys: pytest.CaptureFixture[str]
):
    assert start(run_file) == 0
    printed = capsys.readouterr()
    held_out, data, made = printed.out.splitlines()
    assert held_out.startswith("lines        loss ")
    assert held_out.endswith(" bits per byte")
    assert " documents | 128 tokens, 100.0% learned | 0.0% padding | " in data
    assert made == f"{run_file.parent / 'run' / 'model'} | 4 steps | 128 tokens"
    assert "trained | float32 on cpu | 4 steps | seed 0" in printed.err
    assert "step 4/4 | loss " in printed.err


def test_results_for_tools_are_one_json_object(
    start: Start, run_file: Path, capsys: pytest.CaptureFixture[str]
):
    assert start(run_file, "--set", "steps=2", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert Path(found["model"], "config.json").exists()
    assert (found["steps"], found["tokens"]) == (2, 64)
    assert found["held_out"][0]["domain"] == "lines"
    assert found["data"]["sources"][0]["tokens"] == 64
    assert read_run(found["record"]).of("step")[-1]["step"] == 2


def test_a_dry_run_says_what_would_be_read_and_writes_nothing(
    start: Start, run_file: Path, capsys: pytest.CaptureFixture[str]
):
    assert start(run_file, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert re.search(r"\d+ rows of 16 tokens, \d+\.\d% padding", printed)
    assert "learned" in printed
    assert start(run_file, "--dry-run", "--json") == 0
    (source,) = json.loads(capsys.readouterr().out)["sources"]
    assert source["documents"] > 100  # one in five is held out
    assert source["dropped"] == 0
    assert not (run_file.parent / "run").exists()


def test_a_wrong_request_exits_with_2_and_a_failed_run_with_1(
    start: Start, run_file: Path, capsys: pytest.CaptureFixture[str]
):
    assert start(run_file, "--set", "stepz=2") == 2
    assert "stepz is not a setting; did you mean 'steps'?" in capsys.readouterr().err
    rate = "schedule.learning_rate=1e30"
    assert start(run_file, "--set", rate, "--set", "optimizer.clip_norm=1e30") == 1
    assert "so nothing was changed and the run ended" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid(recipe: Path):
    assert read_run_file(TrainConfig, recipe).evaluation is not None


@pytest.mark.slow
@pytest.mark.parametrize("recipe", FRESH, ids=lambda path: path.stem)
def test_the_first_steps_of_every_recipe_run(recipe: Path, start: Start, tmp_path: Path):
    folder = f"folder={tmp_path / 'run'}"
    assert start(recipe, "--set", "steps=2", "--set", "evaluation.rows=1", "--set", folder) == 0


def command(run_file: Path, *changes: str) -> "subprocess.Popen[str]":
    options = [part for change in changes for part in ("--set", change)]
    arguments = [sys.executable, "-m", "moesaic", "train", str(run_file), *options]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for_step(process: "subprocess.Popen[str]", record: Path, step: int) -> None:
    """Until a run has done this step."""
    while process.poll() is None:
        try:
            if any(line["step"] >= step for line in read_run(record).of("step")):
                return
        except DataError:
            pass  # there is no record yet
        time.sleep(0.005)
    raise AssertionError(f"the run ended before step {step}: {process.communicate()[1]}")


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(run_file: Path):
    with command(run_file, "steps=100000") as process:
        wait_for_step(process, run_file.parent / "run" / "record.jsonl", 3)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate()
    assert process.returncode == 130
    assert "and saved; give the same command again to go on" in told
    (saved,) = (run_file.parent / "run" / "checkpoints").iterdir()
    assert f"stopped after step {int(saved.name.removeprefix('step-'))} of 100000" in told


@pytest.mark.slow
def test_the_command_killed_at_any_time_goes_on_bit_for_bit(run_file: Path, tmp_path: Path):
    changes = ("steps=60", "checkpoint.every_steps=2")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder, kills in ((whole, ()), (killed, (1, 17, 36, 52))):
        for step in kills:
            with command(run_file, *changes, f"folder={folder}") as process:
                wait_for_step(process, folder / "record.jsonl", step)
                process.kill()
        with command(run_file, *changes, f"folder={folder}") as process:
            assert process.communicate()[1].count("| loss ") > 0
        assert process.returncode == 0
    curves = [
        [(line["loss"], line["grad_norm"]) for line in read_run(folder / "record.jsonl").of("step")]
        for folder in (whole, killed)
    ]
    assert curves[0] == curves[1]
    assert len(read_run(killed / "record.jsonl").resumed) == 4
    weights = [(f / "model" / "model.safetensors").read_bytes() for f in (whole, killed)]
    assert weights[0] == weights[1]
