"""`evaluate`: a model on some tasks, its answers kept as they come, and held against a base."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from moesaic.config.eval import EvalConfig
from moesaic.errors import ConfigError, DataError
from moesaic.eval.engine import Checkpoint, Engine
from moesaic.eval.progress import Display, Silent
from moesaic.eval.requests import Answer, Request
from moesaic.eval.results import RESULTS, SAMPLES, EvalResult, Source
from moesaic.eval.samples import Question, Sample, SampleFile, locked, read_samples, short_digest
from moesaic.eval.summary import compare, summarise
from moesaic.eval.task import Task
from moesaic.eval.tasks.perplexity import PerplexityTask
from moesaic.eval.tasks.registry import check_name, find_task
from moesaic.runlog import hardware, versions

BASE = "base"
"""Folder inside an evaluation's where a base that is a checkpoint is evaluated."""


def evaluate(
    model: Engine | Path | str,
    tasks: Sequence[Task | str],
    out: Path | str | None = None,
    base: Path | str | None = None,
    data: Path | str | None = None,
    display: Display | None = None,
    **settings: Any,
) -> EvalResult:
    """Score a model on some tasks, and compare it with a base item by item.

    With ``out`` every answer is on disk before the next is waited for: an evaluation that was
    stopped goes on where it was, and one that is finished asks the model nothing.

    Args:
        model: a checkpoint folder with a tokenizer, or an engine.
        tasks: each a task, a name of `moesaic.eval.tasks.registry.TASKS`, or ``NAME=DATA``.
        out: folder for ``results.json`` and ``samples/``; None keeps nothing.
        base: a folder with results of the same tasks, or a checkpoint, which is evaluated first.
        data: folder with the files of data sets.
        display: shows how far it is.
        settings: those of `EvalConfig`, as ``limit=100``; an engine has its own.

    Raises:
        ConfigError: for a wrong setting, an unknown task, or one named twice.
        CheckpointError: if a folder is incomplete, damaged, or does not fit its config.json.
        DataError: if data, samples or a base's results are missing or damaged.
        RequestError: if a request does not fit the model, or the model gives no numbers.
    """
    asker = _asker(model, settings)
    asked = [_Asked.of(task) for task in _tasks(tasks, data, asker.config)]
    folder, shown = None if out is None else Path(out), display or Silent()
    if base is None:
        return _run(asker, asked, folder, shown)[0]
    reference = _Reference.of(Path(base), asked, asker.config, folder, shown)
    return _run(asker, asked, folder, shown, reference)[0]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A task and its questions."""

    task: Task
    questions: Sequence[Question]

    @classmethod
    def of(cls, task: Task) -> "_Asked":
        return cls(task, [Question.of(task, place) for place in range(len(task.items))])


Samples = Mapping[str, Sequence[Sample]]
"""By the name of a task."""


@dataclass(frozen=True, slots=True)
class _Reference:
    """What a model is held against."""

    source: Source
    where: str
    samples: Mapping[str, Mapping[str, Sample]]
    """Of each task, by question."""

    @classmethod
    def of(
        cls,
        folder: Path,
        asked: Sequence[_Asked],
        config: EvalConfig,
        out: Path | None,
        display: Display,
    ) -> "_Reference":
        """The results in a folder, or those of the checkpoint in it."""
        if (folder / "config.json").is_file():
            place = None if out is None else out / BASE
            display.say(f"base: {folder}")
            result, samples = _run(Checkpoint(folder, config), asked, place, display)
            source = result.model
        else:
            source = _read_source(folder / RESULTS)
            files = {one.task.name: SampleFile(folder / SAMPLES, one.task.name) for one in asked}
            samples = {name: read_samples(file.path) for name, file in files.items()}
        by_question = {
            name: {sample.question: sample for sample in found} for name, found in samples.items()
        }
        found = cls(source, str(folder), by_question)
        for one in asked:
            found.check(one)
        return found

    def check(self, asked: _Asked) -> None:
        """Refuse a base that was not asked the same, before the model is."""
        answered = self.samples[asked.task.name]
        count = sum(question.digest in answered for question in asked.questions)
        if count < len(asked.questions):
            raise DataError(
                f"{self.where} answers {count} of the {len(asked.questions)} questions of "
                f"{asked.task.name}: it was asked with other shots, data or limit; evaluate it "
                "with these, or give the base's checkpoint folder"
            )


def _run(
    asker: Engine | Checkpoint,
    asked: Sequence[_Asked],
    folder: Path | None,
    display: Display,
    base: _Reference | None = None,
) -> tuple[EvalResult, Samples]:
    """Ask everything, and write the results."""
    began, samples, results = time.monotonic(), {}, {}
    with nullcontext() if folder is None else locked(folder / SAMPLES):
        for one in asked:
            name = one.task.name
            file = None if folder is None else SampleFile(folder / SAMPLES, name)
            samples[name] = _answered(asker, one, file, display)
            results[name] = summarise(one.task, samples[name])
            if base is not None:
                against = compare(one.task, samples[name], base.samples[name])
                results[name] = replace(results[name], against=against)
        result = EvalResult(
            asker.source,
            asker.config.model_dump(mode="json"),
            results,
            None if base is None else base.source,
            time.monotonic() - began,
            versions(),
            hardware(torch.cuda.get_device_name() if asker.device == "cuda" else None),
        )
        if folder is not None:
            result.save(folder)
    return result, samples


def _answered(
    asker: Engine | Checkpoint, asked: _Asked, file: SampleFile | None, display: Display
) -> list[Sample]:
    """Every item of a task with its answers, from the file or from the model."""
    by, questions = short_digest(asker.by), asked.questions
    found, moved = ({}, 0) if file is None else file.begin([(q.digest, by) for q in questions])
    if file is not None and moved:
        display.say(
            f"{file.path}: {moved} answers of another model or to other questions are now in "
            f"{file.earlier.name}"
        )
    samples = {
        question.item: replace(found[question.digest, by], item=question.item, group=question.group)
        for question in questions
        if (question.digest, by) in found
    }
    display.begin(asked.task.name, len(samples), len(questions))
    for question, answers in _ask(asker, questions, samples):
        judgement = asked.task.judge(asked.task.items[question.item], answers)
        sample = samples[question.item] = Sample.of(question, by, answers, judgement)
        if file is not None:
            file.add(sample)
        display.answered()
    ordered = [samples[question.item] for question in questions]
    if file is not None:
        file.finish(ordered)
    return ordered


def _ask(
    asker: Engine | Checkpoint, questions: Sequence[Question], done: Mapping[int, Sample]
) -> Iterator[tuple[Question, list[Answer]]]:
    """Questions that are not done with their answers, as soon as each has all of them."""
    requests: list[Request] = []
    asking: list[tuple[Question, int]] = []
    for question in questions:
        asking += [(question, place) for place in range(len(question.requests))]
        requests += question.requests
    known = {place for place, (question, _) in enumerate(asking) if question.item in done}
    received: dict[int, dict[int, Answer]] = {}
    for place, answer in asker.answer(requests, known):
        question, part = asking[place]
        answers = received.setdefault(question.item, {})
        answers[part] = answer
        if len(answers) == len(question.requests):
            yield question, [answers[part] for part in sorted(received.pop(question.item))]


def _asker(model: Engine | Path | str, settings: Mapping[str, Any]) -> Engine | Checkpoint:
    if not isinstance(model, Engine):
        return Checkpoint(model, EvalConfig.parse(settings))
    if settings:
        raise ConfigError(
            f"{', '.join(settings)}: an engine has its own settings; give them to Engine(config=…)"
        )
    return model


def _tasks(tasks: Sequence[Task | str], data: Path | str | None, config: EvalConfig) -> list[Task]:
    """The tasks, those that are only named with their data."""
    found = _told_apart(
        [_find(task, data, config) if isinstance(task, str) else task for task in tasks]
    )
    names = [task.name for task in found]
    if not names:
        raise ConfigError("no task was given; give at least one")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{twice} is given twice; give each task once, or two folders as out")
    empty = next((task.name for task in found if not task.items), None)
    if empty is not None:
        raise DataError(f"{empty} has no items; raise limit, or give other data")
    return found


def _told_apart(tasks: Sequence[Task]) -> list[Task]:
    """Texts of which the perplexity is asked are named, where there are several."""
    texts = [task for task in tasks if isinstance(task, PerplexityTask)]
    if len(texts) < 2:
        return list(tasks)
    return [task.named() if isinstance(task, PerplexityTask) else task for task in tasks]


def _find(name: str, data: Path | str | None, config: EvalConfig) -> Task:
    name, _, own = name.partition("=")
    place = own or data
    if place is None:
        check_name(name)
        raise ConfigError(
            f"{name} needs data; give the folder with its files as data, or write {name}=FILE"
        )
    return find_task(name, Path(place), config.limit, config.shots, config.seed, config.allow_code)


def _read_source(path: Path) -> Source:
    """Whose results a file holds."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["kind"] != "evaluation":
            raise ValueError(f"its kind is {found['kind']!r}")
        return Source(found["model"]["folder"], found["model"]["digest"])
    except FileNotFoundError:
        raise DataError(
            f"{path.parent} is no base: it has neither a checkpoint's config.json nor "
            f"{RESULTS} of an evaluation; give one of these folders"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not the result of an evaluation ({error})") from None
