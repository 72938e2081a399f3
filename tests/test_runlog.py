import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from moesaic import __version__
from moesaic.errors import DataError, TrainingError
from moesaic.runlog import RunLog, describe_run, hardware, peak_bytes, read_run, versions

START = describe_run({"steps": 8, "model": {"hidden_size": 16}}, seed=7)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "record.jsonl"


def write_steps(log: RunLog, first: int, last: int) -> None:
    for step in range(first, last + 1):
        log.write("step", step, {"loss": 1 / step})


def steps(path: Path) -> list[int]:
    return [line["step"] for line in read_run(path).of("step")]


def test_the_first_line_says_what_ran(path: Path):
    with RunLog(path, START):
        pass
    start = read_run(path).start
    assert start["config"] == {"steps": 8, "model": {"hidden_size": 16}}
    assert start["seed"] == 7
    assert start["versions"]["moesaic"] == __version__
    assert start["hardware"]["gpu"] is None


def test_every_line_is_in_the_file_before_the_next_is_written(path: Path):
    log = RunLog(path, START)
    log.write("step", 1, {"loss": 2.5})
    assert read_run(path).of("step")[0]["loss"] == 2.5
    log.close()


def test_every_line_is_json_even_where_the_loss_is_not_a_number(path: Path):
    with RunLog(path, START) as log:
        log.write("step", 1, {"loss": math.nan, "grad_norm": math.inf, "load": [[1.0, math.inf]]})
    for text in path.read_text().splitlines():
        json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    line = read_run(path).of("step")[0]
    assert math.isnan(line["loss"])
    assert line["grad_norm"] == math.inf


def test_lines_of_different_kinds_are_kept_apart(path: Path):
    with RunLog(path, START) as log:
        log.write("step", 1, {"loss": 2.0})
        log.write("evaluation", 1, {"loss": 3.0})
    record = read_run(path)
    assert [line["loss"] for line in record.of("evaluation")] == [3.0]
    assert len(record.lines) == 2


@pytest.mark.parametrize("torn", [b"{", b'{"kind": "step", "step": 4, "lo', '{"é'.encode()[:-1]])
def test_a_line_torn_by_a_killed_process_is_left_out(path: Path, torn: bytes):
    with RunLog(path, START) as log:
        write_steps(log, 1, 3)
    with path.open("ab") as file:
        file.write(torn)
    assert steps(path) == [1, 2, 3]


def test_a_resumed_run_has_each_step_once(path: Path):
    with RunLog(path, START) as log:
        write_steps(log, 1, 5)
    with path.open("ab") as file:
        file.write(b'{"kind": "st')
    with RunLog(path, START, resume_at_step=3) as log:
        write_steps(log, 4, 8)
    assert steps(path) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [line["step"] for line in read_run(path).resumed] == [3]


def test_a_run_killed_before_its_first_save_starts_its_record_again(path: Path):
    with RunLog(path, START) as log:
        write_steps(log, 1, 2)
    with RunLog(path, START, resume_at_step=0) as log:
        write_steps(log, 1, 2)
    assert steps(path) == [1, 2]


def test_a_run_killed_while_its_first_line_was_written_begins_its_record(path: Path):
    path.parent.mkdir()
    path.write_bytes(b'{"kind": "start", "conf')
    with RunLog(path, START) as log:
        write_steps(log, 1, 1)
    assert read_run(path).start["seed"] == 7


def test_a_new_run_does_not_overwrite_an_old_record(path: Path):
    RunLog(path, START).close()
    with pytest.raises(TrainingError, match="already holds a run; resume that run, or choose"):
        RunLog(path, START)


def test_a_damaged_line_in_the_middle_is_refused_by_number(path: Path):
    with RunLog(path, START) as log:
        write_steps(log, 1, 3)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], b"\x00\x00", *lines[2:]]))
    with pytest.raises(DataError, match="line 2 is not JSON"):
        read_run(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]\n", "line 1 has no kind; this is not the record of a run"),
        ('{"kind": "step"}\n', "the first line is of kind 'step', not 'start'"),
        ("", "holds no complete line; the run stopped before it began"),
    ],
)
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "notes.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        read_run(tmp_path / "notes.jsonl")


def test_a_record_that_is_not_there_is_refused(path: Path):
    with pytest.raises(DataError, match="does not exist; give the record of a run"):
        read_run(path)


def test_versions_name_what_results_depend_on():
    assert {"python", "moesaic", "torch", "safetensors"} <= versions().keys()
    assert all(versions().values())


def test_hardware_names_the_processor_and_the_accelerator_it_is_told():
    machine = hardware("H100")
    assert machine["gpu"] == "H100"
    assert machine["cpu"]
    assert machine["cores"] >= 1
    assert machine["memory_bytes"] > 0


def test_the_peak_of_a_process_is_not_that_of_the_one_that_started_it():
    held = bytearray(b"1" * 200_000_000)
    code = "from moesaic.runlog import peak_bytes; print(peak_bytes())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) < len(held) < peak_bytes()
