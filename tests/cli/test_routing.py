"""``moesaic routing`` shows where tokens go, and writes what the report reads."""

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
from moesaic.model.build import build_model


@pytest.fixture
def base(tmp_path: Path, tiny_config: Callable[..., ModelConfig]) -> Path:
    """A checkpoint with a tokenizer, beside two texts."""
    (tmp_path / "words.txt").write_text("".join(f"Line {n} has words.\n" for n in range(150)))
    (tmp_path / "sums.txt").write_text("".join(f"{n} + 7 = {n + 7}\n" for n in range(150)))
    config = tiny_config("v2", vocab_size=300)
    save(tmp_path / "base", config, build_model(config).state_dict(), "bfloat16")
    sources = [{"path": str(tmp_path / "*.txt"), "split": "all"}]
    data = DataConfig.parse({"sources": sources, "seq_len": 32})
    train_on_sources(data, 300).save(tmp_path / "base")
    return tmp_path / "base"


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """``run(*arguments)``: status, output and messages of ``moesaic routing`` on both texts."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        data = [f"--data=words={base.parent}/words.txt", f"--data=sums={base.parent}/sums.txt"]
        few = ["--set", "tokens=300", "--set", "device=cpu"]
        given = ["moesaic", "routing", str(base), *data, *few, *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", given)
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return call


def test_tables_show_the_main_numbers(run: Run, base: Path) -> None:
    status, printed, _ = run("--against", base, "--ablate", "--set", "ablation.tokens=100")
    assert status == 0
    for title in (
        "domains\n",
        "layers, over all domains alike",
        "overlap of domains",
        "routing of the same tokens by the other checkpoint",
        f"switched off in {base}",
    ):
        assert title in printed
    assert "no shared experts, 5 routed" in printed
    assert "the 2 preferred experts off (25.0%)" in printed
    assert "1 expert per token" in printed
    assert "+0.0000" in printed


def test_json_is_what_is_written(run: Run, tmp_path: Path) -> None:
    status, printed, _ = run("--json", "--out", tmp_path / "study")
    assert status == 0
    found = json.loads(printed)
    assert json.loads((tmp_path / "study" / "routing.json").read_text()) == found
    assert found["kind"] == "routing"
    assert list(found["domains"]) == ["words", "sums"]
    assert found["settings"]["tokens"] == 300
    assert found["left_out"]["ablation"] == "it was not asked for"
    assert (tmp_path / "study" / "loads.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "words"], "--data words: not a domain; write NAME=FILE"),
        (["--data", "none=none.txt"], "source 'none.txt' matches no file"),
        (["--set", "token=3"], "--set: token is not a setting; did you mean 'tokens'?"),
        (["--set", "ablation.disabled=[1.5]"], "--set: ablation.disabled.0=1.5 is not allowed"),
        (["--set", "ablation.chosen=[9]"], "skipped=0 leaves 8 of 8 experts, a token goes to 9"),
    ],
)
def test_what_is_wrong_is_told_on_one_line(arguments: list[str], message: str, run: Run) -> None:
    status, printed, told = run(*arguments)
    assert (status, printed) == (2, "")
    assert f"moesaic: {message}" in told
