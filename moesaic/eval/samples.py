"""The answers of an evaluation, kept as they come: ``samples/<task>.jsonl``.

One JSON object per item: its place in the task, its group, what was asked, what the model answered
and what became of it. A context that is that of the request before is left out. ``question`` stands
for what was asked and ``by`` for who answered; both together find an answer again.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from moesaic.checkpoint.atomic import new_file
from moesaic.errors import DataError
from moesaic.eval.requests import Answer, Generation, Likelihood, Request
from moesaic.eval.results import encodable
from moesaic.eval.task import Judgement, Task

Key = tuple[str, str]
"""Question, and who answered."""

_LINES, _EARLIER = ".jsonl", ".earlier.jsonl"


@dataclass(frozen=True, slots=True)
class Question:
    """An item and what is asked about it."""

    item: int
    """Place in the task."""
    group: str | None
    requests: Sequence[Request]
    digest: str
    """Of item and requests; the same for every model."""

    @classmethod
    def of(cls, task: Task, place: int) -> Self:
        """An item of a task."""
        item = task.items[place]
        requests = task.requests(item)
        told = [task.name, task.description.get("version"), item, requests_json(requests)]
        return cls(place, task.group(item), requests, short_digest(told))


@dataclass(frozen=True, slots=True)
class Sample:
    """An item with what became of it."""

    item: int
    group: str | None
    question: str
    by: str
    requests: Sequence[Mapping[str, Any]]
    answers: Sequence[Mapping[str, Any]]
    judgement: Judgement

    @classmethod
    def of(cls, asked: Question, by: str, answers: Sequence[Answer], judgement: Judgement) -> Self:
        """What is kept of an answered question."""
        return cls(
            asked.item,
            asked.group,
            asked.digest,
            by,
            requests_json(asked.requests),
            [asdict(answer) for answer in answers],
            Judgement(_numbers(judgement.values), judgement.answer, judgement.target),
        )

    @property
    def key(self) -> Key:
        """What finds it again."""
        return self.question, self.by

    def line(self) -> bytes:
        """A line of the file."""
        text = json.dumps(encodable(asdict(self)), ensure_ascii=False, allow_nan=False)
        return text.encode() + b"\n"


class SampleFile:
    """The samples of one task. Every sample is on disk when `add` returns.

    Answers that an evaluation does not ask for, of another model or to other prompts, are moved to
    a second file beside it; there they are found again when they are asked for.
    """

    def __init__(self, folder: Path, task: str) -> None:
        name = task.replace("/", "-")
        self.path = folder / f"{name}{_LINES}"
        self.earlier = folder / f"{name}{_EARLIER}"

    def begin(self, wanted: Sequence[Key]) -> tuple[dict[Key, Sample], int]:
        """Leave in the file what is wanted.

        Returns:
            The samples found, and how many others were moved away.

        Raises:
            DataError: if a line is damaged, or the disk is full or refuses.
        """
        present = read_samples(self.path)
        kept = {sample.key: sample for sample in (*read_samples(self.earlier), *present)}
        found = {key: kept[key] for key in wanted if key in kept}
        others = [sample for sample in present if sample.key not in found]
        with _as_data_error(self.path):
            if others:
                _append(self.earlier, others)
            _replace(self.path, found.values())
        return found, len(others)

    def add(self, sample: Sample) -> None:
        """Append one sample.

        Raises:
            DataError: if the disk is full or refuses.
        """
        with _as_data_error(self.path):
            _append(self.path, [sample])

    def finish(self, samples: Sequence[Sample]) -> None:
        """Put all samples in the order of the items."""
        with _as_data_error(self.path):
            _replace(self.path, samples)


def read_samples(path: Path) -> list[Sample]:
    """The samples in a file, or none; a torn last line is left out.

    Raises:
        DataError: if a line before the last is damaged.
    """
    if not path.exists():
        return []
    *complete, _torn = path.read_bytes().split(b"\n")
    return [_parse(line, f"{path}: line {number}") for number, line in enumerate(complete, 1)]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder, and keep other evaluations out of it.

    Raises:
        DataError: if another one is writing there, or the folder cannot be made.
    """
    with _as_data_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(
                f"{folder}: another evaluation is writing there; wait for it, or give another out"
            ) from None
        yield
    finally:
        os.close(handle)


def requests_json(requests: Sequence[Request]) -> list[dict[str, Any]]:
    """Requests as JSON values, without a context that is that of the request before."""
    found: list[dict[str, Any]] = []
    context = None
    for request in requests:
        values = {"kind": type(request).__name__.lower(), **asdict(request)}
        if isinstance(request, Likelihood):
            if request.context == context:
                del values["context"]
            context = request.context
        elif isinstance(request, Generation):
            values["stop"] = list(request.stop)
        found.append(values)
    return found


def short_digest(value: Any) -> str:
    """The beginning of the SHA-256 of a JSON value."""
    text = json.dumps(encodable(value), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _parse(line: bytes, where: str) -> Sample:
    try:
        values = json.loads(line)
        judged = values.pop("judgement")
        return Sample(**values, judgement=Judgement(_numbers(judged.pop("values")), **judged))
    except (ValueError, TypeError, AttributeError, KeyError):
        raise DataError(
            f"{where} is not a sample of an evaluation; restore the file, or remove it and give "
            "the same command again"
        ) from None


def _numbers(values: Mapping[str, Any]) -> dict[str, float | tuple[float, float]]:
    """Values of metrics: numbers, and pairs of them as tuples, whatever they were read from."""
    return {
        name: (float(value[0]), float(value[1]))
        if isinstance(value, list | tuple)
        else float(value)
        for name, value in values.items()
    }


def _append(path: Path, samples: Iterable[Sample]) -> None:
    with path.open("ab") as file:
        file.writelines(sample.line() for sample in samples)


def _replace(path: Path, samples: Iterable[Sample]) -> None:
    """Leave exactly these samples in a file, unless they are already there."""
    content = b"".join(sample.line() for sample in samples)
    if not path.exists() or path.read_bytes() != content:
        with new_file(path) as file:
            file.write(content)


@contextmanager
def _as_data_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path} could not be written ({error.strerror or error}); free some space or choose "
            "another out, and give the same command again: what was recorded is not asked again"
        ) from error
