"""`moesaic report` writes one page, and says the verdict where it was asked for."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import pytest

from moesaic.cli.main import main

STUDY = next(Path(__file__).parents[2].glob("benchmarks/results/variants_*.json"))


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """``run(*arguments)``: status, output and messages of ``moesaic report``."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moesaic", "report", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return call


def test_the_verdict_is_printed_and_the_page_is_written(run, tmp_path: Path):
    status, out, _ = run(STUDY, "--out", tmp_path / "page.html")
    assert status == 0
    assert "All 8 variants learn math" in out
    assert f"{tmp_path / 'page.html'} | " in out
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_the_page_lies_beside_what_it_is_about(run, tmp_path: Path):
    study = tmp_path / "study.json"
    study.write_bytes(STUDY.read_bytes())
    run(study)
    assert (tmp_path / "report.html").exists()


def test_json_has_the_verdict_and_what_is_shown(run, tmp_path: Path):
    (tmp_path / "other.json").write_text('{"kind": "weather"}')
    arguments = (STUDY, tmp_path / "other.json", "--out", tmp_path / "page.html", "--json")
    found = json.loads(run(*arguments)[1])
    assert found["shown"] == {"studies of variants": [STUDY.name]}
    assert len(found["verdict"]) == 3
    assert "'weather' is not a kind" in found["not_shown"][0]


def test_nothing_to_report_is_a_wrong_request(run, tmp_path: Path):
    status, _, told = run(tmp_path)
    assert status == 2
    assert "nothing to report there; give folders of runs (record.jsonl)" in told


def test_reports_need_no_torch():
    code = "import sys, moesaic.report.page, moesaic.report.live; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_a_page_is_served_until_it_is_interrupted():
    command = [sys.executable, "-m", "moesaic", "report", str(STUDY), "--live", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = process.stdout.readline()
        found = re.match(r"(http://127\.0\.0\.1:\d+/) \| Ctrl-C ends", told)
        assert found, told
        with urlopen(found[1]) as answer:
            assert b"All 8 variants learn math" in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
