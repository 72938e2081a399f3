"""Scores come from the samples, and what was asked wrongly is told."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from small_tasks import Choices, Counted, Writing, all_tasks, choices, read

import moesaic
from moesaic.errors import ConfigError, DataError
from moesaic.eval.progress import Lines
from moesaic.eval.run import evaluate
from moesaic.eval.task import Judgement


def test_every_task_has_its_metrics_with_errors(engine: Counted, tmp_path: Path) -> None:
    result = evaluate(engine, all_tasks(), tmp_path)
    found = read(tmp_path)
    assert found == json.loads(json.dumps(result.to_json()))
    assert found["kind"] == "evaluation"
    assert found["model"] == {"folder": None, "digest": engine.source.digest}
    assert found["settings"]["batch_tokens"] == 200
    assert found["versions"]["moesaic"] == moesaic.__version__
    assert {"cpu", "memory_bytes"} <= set(found["hardware"])
    assert [task["n"] for task in found["tasks"].values()] == [12, 12, 12]
    acc = found["tasks"]["choices"]["metrics"]["acc"]
    assert 0 <= acc["low"] <= acc["value"] <= acc["high"] <= 1
    assert acc["higher_is_better"]
    texts = found["tasks"]["texts"]["metrics"]
    assert texts["bits_per_byte"]["value"] > 0
    assert not texts["word_perplexity"]["higher_is_better"]


def test_scores_are_those_of_the_samples(engine: Counted, tmp_path: Path) -> None:
    result = evaluate(engine, [choices(15)], tmp_path)
    samples = [
        json.loads(line) for line in (tmp_path / "samples/choices.jsonl").read_text().splitlines()
    ]
    assert [sample["item"] for sample in samples] == list(range(15))
    right = [sample["judgement"]["values"]["acc"] for sample in samples]
    task = result.tasks["choices"]
    assert task.scores.metrics["acc"].estimate.value == sum(right) / 15
    even = [
        value for value, sample in zip(right, samples, strict=True) if sample["group"] == "even"
    ]
    assert task.groups["even"].n == len(even) == 8
    assert task.groups["even"].metrics["acc"].estimate.value == sum(even) / 8
    first = samples[0]
    item = choices(15).items[0]
    assert first["requests"][0]["context"] == item["question"]
    assert [request["continuation"] for request in first["requests"]] == [
        f" {choice}" for choice in item["choices"]
    ]
    best = max(range(4), key=lambda place: first["answers"][place]["log_probability"])
    assert first["judgement"]["answer"] == item["choices"][best]
    assert first["judgement"]["target"] == item["choices"][item["gold"]]


def test_nothing_is_written_without_a_folder(
    engine: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert evaluate(engine, [choices(2)]).tasks["choices"].scores.n == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("tasks", "settings", "message"),
    [
        (["hellaswagg"], {}, "'hellaswagg' is no task; did you mean 'hellaswag'?"),
        (["hellaswag"], {"limits": 3}, "limits is not a setting; did you mean 'limit'?"),
        ([], {}, "no task was given; give at least one"),
        ([choices(1), choices(2)], {}, "choices is given twice; give each task once"),
        ([Writing([])], {}, "writing has no items; raise limit, or give other data"),
    ],
)
def test_a_wrong_request_says_what_to_do(
    folder: Path, tmp_path: Path, tasks: list[Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises((ConfigError, DataError)) as error:
        evaluate(folder, tasks, data=tmp_path, **settings)
    assert message in str(error.value)


def test_a_named_task_needs_data_and_an_engine_has_its_settings(
    engine: Counted, folder: Path
) -> None:
    with pytest.raises(ConfigError, match="'hellaswagg' is no task; did you mean 'hellaswag'"):
        evaluate(folder, ["hellaswagg"])
    with pytest.raises(ConfigError, match="hellaswag needs data; give the folder with its files"):
        evaluate(folder, ["hellaswag"])
    with pytest.raises(ConfigError, match="limit: an engine has its own settings"):
        evaluate(engine, [choices(1)], limit=3)


def test_numbers_that_are_not_finite_are_words_in_json(engine: Counted, tmp_path: Path) -> None:
    class Endless(Choices):
        def judge(self, item: Any, answers: Any) -> Judgement:
            return Judgement({"acc": 0.0, "likelihood": float("-inf")}, "", "")

    task = Endless(choices(2).items)
    evaluate(engine, [task], tmp_path)
    assert read(tmp_path)["tasks"]["choices"]["metrics"]["likelihood"]["value"] == "-inf"
    again = evaluate(engine, [task], tmp_path)
    assert again.tasks["choices"].scores.metrics["likelihood"].estimate.value == float("-inf")


def test_lines_tell_speed_and_time_left(engine: Counted) -> None:
    stream = io.StringIO()
    evaluate(engine, [choices(3)], display=Lines(stream, every_s=0))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "choices: 3 items"
    assert lines[1].startswith("choices 1/3 | ")
    assert lines[1].endswith(" left")
    assert lines[3].startswith("choices 3/3 | ")
    assert lines[3].endswith(" items/s")


def test_the_public_name_is_this_function() -> None:
    assert moesaic.evaluate is evaluate
