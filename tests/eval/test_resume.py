"""An evaluation can stop at any moment, and asks nothing twice."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from models import random_model
from small_tasks import Counted, Said, all_tasks, choices, files

from moesaic.config.eval import EvalConfig
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import DataError
from moesaic.eval.engine import Engine
from moesaic.eval.run import evaluate
from moesaic.eval.samples import locked, read_samples
from moesaic.model.transformer import Transformer


def test_a_finished_evaluation_asks_nothing(engine: Counted, tmp_path: Path) -> None:
    first = evaluate(engine, all_tasks(), tmp_path)
    asked, before = engine.asked, files(tmp_path)
    assert asked == 12 * 4 + 12 + 12
    again = evaluate(engine, all_tasks(), tmp_path)
    assert engine.asked == asked
    assert files(tmp_path) == before
    assert again.tasks == first.tasks


@pytest.mark.parametrize("stop_after", [0, 1, 30, 50, 71])
def test_an_interrupted_evaluation_goes_on_and_ends_with_the_same_bytes(
    engine: Counted, model: Transformer, tokenizer: Tokenizer, tmp_path: Path, stop_after: int
) -> None:
    whole = evaluate(engine, all_tasks(), tmp_path / "whole")
    stopped = Counted(model, tokenizer, engine.config)
    stopped.stop_after = stop_after
    with pytest.raises(KeyboardInterrupt):
        evaluate(stopped, all_tasks(), tmp_path / "parts")
    assert not (tmp_path / "parts/results.json").exists()
    kept = [read_samples(path) for path in (tmp_path / "parts/samples").iterdir()]
    stopped.stop_after = None
    result = evaluate(stopped, all_tasks(), tmp_path / "parts")
    assert result.tasks == whole.tasks
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert stopped.asked <= 72 + 4 * 12  # what belonged to unfinished items is asked again
    assert sum(map(len, kept)) >= stop_after // 4 - 12


def test_a_torn_last_line_is_asked_again(engine: Counted, tmp_path: Path) -> None:
    evaluate(engine, [choices(6)], tmp_path)
    path, before = tmp_path / "samples/choices.jsonl", files(tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    asked = engine.asked
    evaluate(engine, [choices(6)], tmp_path)
    assert engine.asked == asked + 4
    assert files(tmp_path) == before


def test_a_damaged_line_is_told(engine: Counted, tmp_path: Path) -> None:
    evaluate(engine, [choices(3)], tmp_path)
    path = tmp_path / "samples/choices.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"judgement"', b'"judgment"', 1))
    with pytest.raises(DataError, match=r"choices\.jsonl: line 1 is not a sample of an evaluation"):
        evaluate(engine, [choices(3)], tmp_path)


def test_another_model_begins_anew_and_the_first_ones_answers_are_found_again(
    engine: Counted, model: Transformer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    first, said = evaluate(engine, [choices(5)], tmp_path), Said()
    before = files(tmp_path)["choices.jsonl"]
    other = Counted(random_model(model.config, seed=7), tokenizer)
    found = evaluate(other, [choices(5)], tmp_path, display=said)
    assert other.asked == 20
    assert found.tasks != first.tasks
    assert said.lines == [
        f"{tmp_path}/samples/choices.jsonl: 5 answers of another model or to other questions are "
        "now in choices.earlier.jsonl"
    ]
    asked = engine.asked
    assert evaluate(engine, [choices(5)], tmp_path).tasks == first.tasks
    assert engine.asked == asked
    assert files(tmp_path)["choices.jsonl"] == before


@pytest.mark.parametrize("change", [{"max_length": 30}, {"max_new_tokens": 2}, {"chat": True}])
def test_a_setting_that_changes_answers_asks_again(
    model: Transformer, tokenizer: Tokenizer, tmp_path: Path, change: dict[str, Any]
) -> None:
    writing = all_tasks(2)[2]
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}!"
    tokenizer = replace(tokenizer, settings={**tokenizer.settings, "chat_template": template})
    evaluate(Engine(model, tokenizer), [writing], tmp_path)
    other = Counted(model, tokenizer, EvalConfig(**change))
    evaluate(other, [writing], tmp_path)
    assert other.asked == 2


def test_batches_of_another_size_ask_nothing_again(
    engine: Counted, model: Transformer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    evaluate(engine, all_tasks(), tmp_path)
    other = Counted(model, tokenizer, EvalConfig(batch_tokens=4000))
    evaluate(other, all_tasks(), tmp_path)
    assert other.asked == 0


def test_more_items_ask_only_what_is_new(engine: Counted, tmp_path: Path) -> None:
    evaluate(engine, [choices(4)], tmp_path)
    result = evaluate(engine, [choices(9)], tmp_path)
    assert engine.asked == 9 * 4
    assert result.tasks["choices"].scores.n == 9


def test_a_changed_item_is_asked_again(engine: Counted, tmp_path: Path) -> None:
    task = choices(4)
    evaluate(engine, [task], tmp_path)
    changed = replace(
        task, items=[{**task.items[0], "gold": 3 - task.items[0]["gold"]}, *task.items[1:]]
    )
    evaluate(engine, [changed], tmp_path)
    assert engine.asked == 4 * 4 + 4


def test_equal_items_are_equal_answers(engine: Counted, tmp_path: Path) -> None:
    task = choices(2)
    twice = replace(task, items=[task.items[0], task.items[1], task.items[0]])
    result = evaluate(engine, [twice], tmp_path)
    assert result.tasks["choices"].scores.n == 3
    asked = engine.asked
    assert evaluate(engine, [twice], tmp_path).tasks == result.tasks
    assert engine.asked == asked


def test_two_evaluations_do_not_write_to_one_folder(engine: Counted, tmp_path: Path) -> None:
    with locked(tmp_path / "samples"), pytest.raises(DataError, match="another evaluation is wri"):
        evaluate(engine, [choices(2)], tmp_path)


def test_the_weights_of_a_folder_are_not_read_where_nothing_is_asked(
    folder: Path, tmp_path: Path
) -> None:
    first = evaluate(folder, [choices(3)], tmp_path / "out")
    for path in folder.glob("*.safetensors"):
        before = path.stat()
        with path.open("r+b") as file:  # nothing but the header is left
            start = 8 + int.from_bytes(file.read(8), "little")
            file.seek(start)
            file.write(b"\xff" * (before.st_size - start))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert evaluate(folder, [choices(3)], tmp_path / "out").tasks == first.tasks
