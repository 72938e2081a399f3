"""``moesaic eval`` shows scores with their errors, and whether a base differs."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from models import random_model
from small_tasks import words

from moesaic.checkpoint.save import save
from moesaic.cli.main import main
from moesaic.config.model import ModelConfig
from moesaic.data.bpe import train_bpe
from moesaic.eval.engine import Engine

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    tmp_path: Path,
    tiny_config: Callable[..., ModelConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """``run(*arguments)``: status, output and messages of ``moesaic eval model``, in a folder with
    another model, some data and a text."""
    config = tiny_config("v2", vocab_size=300)
    tokenizer = train_bpe(["one two three four five six seven eight nine ten. " * 20], 300)
    for seed, name in enumerate(("model", "other")):
        save(tmp_path / name, config, random_model(config, seed).state_dict(), "float32")
        tokenizer.save(tmp_path / name)
    rows = [
        {
            "query": words(8, seed=place),
            "choices": [words(1 + part, seed=100 * place + part) for part in range(4)],
            "gold": place % 4,
        }
        for place in range(10)
    ]
    (tmp_path / "data").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "data" / "hellaswag_val.jsonl").write_text(lines)
    (tmp_path / "text.txt").write_text(words(40, seed=1))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moesaic", "eval", "model", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return call


def test_a_table_shows_every_score_with_its_error(run: Run) -> None:
    status, printed, told = run("--tasks", "hellaswag", "--data", "data")
    assert status == 0
    assert "hellaswag: 10 items" in told
    [line] = [line.split() for line in printed.splitlines() if line.startswith("hellaswag")]
    assert line[1:3] == ["acc", "10"]
    assert line[4:6] == ["%", "±"]
    assert "to" in line
    assert "acc_norm" in printed


def test_json_is_results_json(run: Run, tmp_path: Path) -> None:
    status, printed, _ = run("--tasks", "hellaswag", "--data", "data", "--out", "out", "--json")
    assert status == 0
    found = json.loads(printed)
    assert found == json.loads((tmp_path / "out/results.json").read_text())
    assert found["kind"] == "evaluation"
    assert found["model"]["folder"] == "model"
    assert found["tasks"]["hellaswag"]["n"] == 10
    lines = (tmp_path / "out/samples/hellaswag.jsonl").read_text().splitlines()
    assert len(lines) == 10


def test_a_base_is_compared_in_words(run: Run) -> None:
    asked = ("--tasks", "hellaswag,perplexity=text.txt", "--data", "data")
    status, printed, told = run(*asked, "--base", "other", "--out", "out")
    assert status == 0
    assert "base: other" in told
    scores, differences = printed.split("minus the base | other | ")
    assert "bits_per_byte" in scores
    assert differences.count("cannot tell apart") >= 2
    again, same, told = run(*asked, "--base", "out/base", "--out", "out")
    assert again == 0
    assert same.split("minus the base")[0] == scores.split("minus the base")[0]
    assert "items/s" not in told  # nothing was asked


def test_settings_and_limit_are_those_of_the_evaluation(run: Run) -> None:
    asked = ("--tasks", "hellaswag", "--data", "data", "--json")
    _, printed, _ = run(*asked, "--limit", "3", "--set", "max_length=64", "--set", "dtype=bfloat16")
    found = json.loads(printed)
    assert found["tasks"]["hellaswag"]["n"] == 3
    assert found["settings"]["limit"] == 3
    assert found["settings"]["max_length"] == 64
    assert found["settings"]["dtype"] == "bfloat16"


def test_ctrl_c_says_how_to_go_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "answer", stopped)
        status, printed, told = run("--tasks", "hellaswag", "--data", "data", "--out", "out")
    assert (status, printed) == (130, "")
    assert "moesaic: stopped; give the same command again to go on" in told
    assert run("--tasks", "hellaswag", "--data", "data", "--out", "out")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "helaswag"], "'helaswag' is no task; did you mean 'hellaswag'?"),
        (["--tasks", "arc_easy"], "arc_easy"),
        (["--tasks", ","], "no task was given"),
        (["--tasks", "hellaswag", "--set", "shot=3"], "shot is not a setting; did you mean 'sho"),
        (["--tasks", "hellaswag", "--limit", "0"], "limit=0 is not allowed"),
        (["--tasks", "hellaswag", "--base", "data"], "data is no base: it has neither"),
        (["--tasks", "hellaswag", "--set", "max_length=999"], "max_length=999 is more than the mo"),
    ],
)
def test_what_is_wrong_is_told_on_one_line(run: Run, arguments: list[str], message: str) -> None:
    status, printed, told = run("--data", "data", *arguments)
    assert (status, printed) == (2, "")
    assert message in told
