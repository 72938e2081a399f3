"""``moesaic score`` shows which experts some data needs, and what the best of them cover."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moesaic.checkpoint.save import save
from moesaic.cli.main import main
from moesaic.config.data import DataConfig
from moesaic.config.model import ModelConfig
from moesaic.data.bpe import train_on_sources
from moesaic.esft.select import read_selection
from moesaic.model.build import build_model


@pytest.fixture
def base(tmp_path: Path, tiny_config: Callable[..., ModelConfig]) -> Path:
    """A checkpoint with a tokenizer, beside a text."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {n} has {n * n % 89} words.\n" for n in range(200)))
    config = tiny_config("v2", vocab_size=300)
    save(tmp_path / "base", config, build_model(config).state_dict(), "bfloat16")
    data = DataConfig.parse({"sources": [{"path": str(text), "split": "all"}], "seq_len": 32})
    train_on_sources(data, 300).save(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def run(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """``run(*arguments)``: status, output and messages of ``moesaic score`` on the text."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        data = ["--data", str(base.parent / "text.txt")]
        monkeypatch.setattr(
            sys, "argv", ["moesaic", "score", str(base), *data, *map(str, arguments)]
        )
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return call


Run = Callable[..., tuple[int, str, str]]


def test_the_table_shows_what_the_best_experts_of_each_layer_cover(run: Run) -> None:
    status, printed, _ = run("--experts", "4", "--tokens", "500")
    assert status == 0
    assert "4 of 8 experts per layer, scored on" in printed
    lines = [line.split() for line in printed.splitlines()]
    rows = [line for line in lines if line and line[0] in ("1", "2", "mean")]
    assert [row[0] for row in rows] == ["1", "2", "mean"]
    first, second, mean = (float(row[-2].rstrip("%")) for row in rows)
    assert min(first, second) > 50  # the best 4 of 8
    assert mean == pytest.approx((first + second) / 2, abs=0.1)


def test_json_has_every_score(run: Run) -> None:
    status, printed, _ = run("--experts", "3", "--tokens", "500", "--json")
    assert status == 0
    found = json.loads(printed)
    assert found["tokens"] >= 500
    for layer in ("1", "2"):
        assert sum(found["token"][layer]) == pytest.approx(1)
        best = sum(sorted(found["token"][layer])[-3:])
        assert found["covered"]["token"][layer] == pytest.approx(best)
        assert len(found["selected"][layer]) == 3


def test_the_selection_is_written_in_the_published_form(run: Run, tmp_path: Path) -> None:
    status, printed, _ = run(
        "--score", "gate", "--experts", "3", "--out", tmp_path / "s.json", "--json"
    )
    assert status == 0
    scores = json.loads(printed)["gate"]
    for layer, ids in read_selection(tmp_path / "s.json").experts.items():
        of_layer = scores[str(layer)]
        assert [of_layer[expert] for expert in ids] == sorted(of_layer)[:-4:-1]


def test_all_the_data_is_scored_where_there_is_less_than_asked_for(run: Run) -> None:
    status, printed, _ = run("--json")
    assert status == 0
    assert 500 < json.loads(printed)["tokens"] < 131_072
    assert {len(ids) for ids in json.loads(printed)["selected"].values()} == {8}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--experts", "9"], "experts=9 cannot be taken of layer 1, which has 8; give 1 to 8"),
        (["--score", "tokens"], "score='tokens' is not one of 'token' or 'gate'; did you mean"),
        (["--data", "none.txt"], "source 'none.txt' matches no file"),
        (["--dtype", "int8"], "dtype='int8' is not one of"),
    ],
)
def test_what_is_wrong_is_told_on_one_line(arguments: list[str], message: str, run: Run) -> None:
    status, printed, told = run(*arguments)
    assert (status, printed) == (2, "")
    assert f"moesaic: {message}" in told
