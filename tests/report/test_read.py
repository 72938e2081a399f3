"""Everything there is to report is found; what is not known is said, not guessed."""

import json
import shutil
from pathlib import Path

import pytest

from moesaic.errors import RequestError
from moesaic.report.page import make_page
from moesaic.report.read import read_sources
from moesaic.report.sources import Sources


def test_a_folder_is_searched_for_everything_there_is_to_report(sources: Sources):
    assert sources.shown == {
        "runs": ["one", "two"],
        "evaluations": ["eval", "base"],
        "merged checkpoints": ["merged"],
        "routing analyses": ["routing"],
    }
    assert sources.not_shown == []
    assert [one.name for one in sources.judged] == ["eval"]


def test_a_run_is_read_with_what_lies_beside_its_record(sources: Sources):
    run = sources.runs[0]
    assert run.slice is not None
    assert run.scores is not None
    assert run.coverage is not None
    assert run.config["steps"] == 8


def test_samples_are_read_in_the_order_of_the_items(sources: Sources):
    samples = sources.judged[0].samples["arc_easy"]
    assert [sample.item for sample in samples] == list(range(12))


def test_a_study_is_known_by_its_kind(study: Path):
    assert read_sources([study]).shown == {"studies of variants": [study.name]}


def test_the_same_run_given_twice_is_shown_once(job: Path):
    assert len(read_sources([job / "one", job]).runs) == 2


def test_a_kind_that_is_not_known_is_listed_and_the_rest_is_shown(job: Path, tmp_path: Path):
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"kind": "weather"}))
    found = read_sources([job / "one", other])
    assert len(found.runs) == 1
    assert found.not_shown == [f"{other}: 'weather' is not a kind of result that a report shows"]


def test_lines_of_a_kind_that_is_not_known_are_listed(job: Path, tmp_path: Path):
    shutil.copytree(job / "one", tmp_path / "one")
    record = tmp_path / "one" / "record.jsonl"
    with record.open("a") as file:
        file.write(json.dumps({"kind": "omen", "step": 8, "time_s": 0}) + "\n")
    assert read_sources([tmp_path]).not_shown == [f"{record}: lines of the kinds 'omen'"]


def test_a_damaged_file_is_listed_with_what_is_wrong(job: Path, tmp_path: Path):
    shutil.copytree(job / "one", tmp_path / "one")
    shutil.copytree(job / "routing", tmp_path / "routing")
    (tmp_path / "one" / "coverage.json").write_text('{"tokens": 3}')
    (tmp_path / "routing" / "routing.json").write_text('{"kind": "routing"}')
    found = read_sources([tmp_path])
    assert found.runs[0].coverage is None
    assert len(found.not_shown) == 2
    assert "coverage.json: not in the form expected: held_out: Field required" in found.not_shown[0]
    assert "routing.json: not in the form expected: model: Field required" in found.not_shown[1]


def test_a_record_without_what_sections_need_is_listed(job: Path, tmp_path: Path):
    shutil.copytree(job / "one", tmp_path / "one")
    shutil.copytree(job / "one", tmp_path / "two")
    record = tmp_path / "two" / "record.jsonl"
    record.write_text(record.read_text().replace('"seq_len"', '"length"'))
    found = read_sources([tmp_path])
    assert [run.name for run in found.runs] == ["one"]
    assert found.not_shown[0].startswith(f"{record}: settings: not in the form expected: data")


def test_things_are_called_by_the_least_that_tells_them_apart(job: Path, tmp_path: Path):
    for where in ("a/run", "b/run"):
        shutil.copytree(job / "one", tmp_path / where)
    shutil.copytree(job / "eval", tmp_path / "c" / "run")
    found = read_sources([tmp_path])
    assert [run.name for run in found.runs] == ["a/run", "b/run"]
    assert [one.name for one in found.judged] == ["run"]


def test_a_run_that_has_only_begun_can_be_shown(job: Path, tmp_path: Path):
    shutil.copytree(job / "one", tmp_path / "one")
    record = tmp_path / "one" / "record.jsonl"
    record.write_text(record.read_text().splitlines(keepends=True)[0])
    sections = make_page(read_sources([tmp_path]), "one").sections
    assert [one.id for one in sections] == ["size", "experts", "recipe"]


def test_a_torn_line_of_samples_ends_what_is_read_of_them(job: Path, tmp_path: Path):
    shutil.copytree(job / "eval", tmp_path / "eval")
    samples = tmp_path / "eval" / "samples" / "arc_easy.jsonl"
    lines = samples.read_text().splitlines(keepends=True)
    samples.write_text("".join(lines[:3]) + lines[3][:20])
    found = read_sources([tmp_path])
    assert [len(one.samples["arc_easy"]) for one in found.judged] == [3]
    assert found.not_shown == [f"{samples}: lines from 4 on, not in our form"]


def test_a_path_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(RequestError, match="nowhere does not exist; give the folder of a run"):
        read_sources([tmp_path / "nowhere"])


def test_a_folder_with_nothing_to_report_is_refused_with_what_was_found(tmp_path: Path):
    (tmp_path / "merge.json").write_text("[]")
    with pytest.raises(
        RequestError, match=r"nothing to report there; give(.|\n)*not a JSON object"
    ):
        read_sources([tmp_path])
