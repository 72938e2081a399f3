"""What there is to report: finds runs and results below the folders given, and reads them.

This is all a report reads. Each file is known by its name in a folder, a single file by its
``kind``; what is not known or damaged is not an error but listed with the reason.

==================  ==========================================================================
``record.jsonl``    a run (`moesaic.runlog`), with ``slice.json``, ``scores.json`` and
                    ``coverage.json`` beside it
``scores.json``     experts scored without a run, with ``coverage.json`` beside it
``merge.json``      how a merged checkpoint was made
``results.json``    an evaluation, with ``samples/<task>.jsonl`` beside it
``routing.json``    an analysis of routing
``*.json``          of the kind ``variants``: several variants trained with several seeds
==================  ==========================================================================
"""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from moesaic.errors import DataError, MoesaicError, RequestError
from moesaic.report.forms import (
    Coverage,
    Evaluated,
    Form,
    Merged,
    Sample,
    Scores,
    Sliced,
    VariantStudy,
)
from moesaic.report.recorded import (
    RecordedConfig,
    RecordedEvaluation,
    RecordedReport,
    RecordedStep,
)
from moesaic.report.routed import Routed
from moesaic.report.sources import (
    Evaluation,
    Merge,
    RoutingResult,
    Run,
    Scored,
    Sources,
    Study,
)
from moesaic.runlog import RunRecord, read_run

_DEPTH = 5
"""Folders below a given one that are looked into."""
_LEFT_ALONE = frozenset({"checkpoints", "tokenizer", "tensorboard", "wandb", "samples"})
_MOST_BYTES = 256 * 10**6
"""A result that is longer is none of ours."""
_MOST_SAMPLES = 4000
"""Answers of a task that are read to choose from."""
SHOWN_LINES = frozenset(
    {"step", "evaluation", "load", "data", "skip", "stop", "end of data", "left out"}
)
"""Kinds of lines of a record that have a place on the page."""

_Form = TypeVar("_Form", bound=Form)


def read_sources(paths: Sequence[Path]) -> Sources:
    """Everything to be shown in some folders and files.

    Raises:
        RequestError: if a path does not exist, or there is nothing to show in all of them.
    """
    sources, files = Sources(), _files(paths)
    names = _names(files)
    for file in files:
        try:
            _READERS[_kind(file)](file, names[file], sources)
        except (MoesaicError, OSError) as error:
            sources.not_shown.append(f"{file}: {error}".replace(f"{file}: {file}", str(file)))
    if not sources.shown:
        where = " and ".join(str(path) for path in paths)
        why = "".join(f"\n{reason}" for reason in sources.not_shown)
        raise RequestError(
            f"{where}: nothing to report there; give folders of runs (record.jsonl), evaluations "
            f"(results.json), routing analyses (routing.json) or merged checkpoints{why}"
        )
    return sources


def _files(paths: Sequence[Path]) -> list[Path]:
    """The files to read, each once."""
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.exists():
            raise RequestError(f"{path} does not exist; give the folder of a run, or a result")
        for file in [path] if path.is_file() else _known_below(path, _DEPTH):
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _known_below(folder: Path, depth: int) -> Iterator[Path]:
    """Files with known names in a folder and those below it, a folder's own first."""
    yield from (folder / name for name in _NAMED if (folder / name).is_file())
    for below in sorted(folder.iterdir()):
        if depth and below.is_dir() and below.name not in _LEFT_ALONE and below.name[0] != ".":
            yield from _known_below(below, depth - 1)


def _names(files: Sequence[Path]) -> dict[Path, str]:
    """The shortest end of each one's path that no other of its kind has."""
    paths = {file: (file.parent if file.name in _NAMED else file).resolve() for file in files}
    return {
        file: _shortest(path, [paths[other] for other in files if other.name == file.name])
        for file, path in paths.items()
    }


def _shortest(path: Path, alike: Sequence[Path]) -> str:
    """Enough of a path's end to tell it from the others."""
    for parts in range(1, len(path.parts)):
        end = path.parts[-parts:]
        if sum(other.parts[-parts:] == end for other in alike) == 1:
            return "/".join(end)
    return str(path)


def _kind(file: Path) -> str:
    if file.name in _NAMED:
        return _NAMED[file.name]
    if file.suffix == ".jsonl":
        return "run"
    content = _json(file)
    kind = content.get("kind", "without a kind")
    if not isinstance(kind, str) or kind not in _READERS:
        raise DataError(f"{file}: {kind!r} is not a kind of result that a report shows")
    return kind


def _read_run(file: Path, name: str, into: Sources) -> None:
    record, folder = read_run(file), file.parent
    _check_record(file, record)
    unknown = sorted({line["kind"] for line in record.lines} - SHOWN_LINES)
    if unknown:
        into.not_shown.append(f"{file}: lines of the kinds {', '.join(map(repr, unknown))}")
    into.runs.append(
        Run(
            name,
            folder,
            record,
            _beside(folder / "slice.json", Sliced, into),
            _beside(folder / "scores.json", Scores, into),
            _beside(folder / "coverage.json", Coverage, into),
        )
    )


def _check_record(file: Path, record: RunRecord) -> None:
    """Refuse a record whose settings or lines are not what sections rely on."""
    lines = [("settings", RecordedConfig, record.start["config"])]
    lines += [("step", RecordedStep, line) for line in record.of("step")]
    lines += [("evaluation", RecordedEvaluation, line) for line in record.of("evaluation")]
    lines += [("data", RecordedReport, line) for line in record.of("data")]
    for what, form, found in lines:
        try:
            form.model_validate(found)
        except ValidationError as error:
            raise DataError(f"{file}: {what}: {_first_of(error)}") from None


def _read_scored(file: Path, name: str, into: Sources) -> None:
    if not file.with_name("record.jsonl").exists():
        coverage = _beside(file.with_name("coverage.json"), Coverage, into)
        into.scored.append(Scored(name, file.parent, _form(file, Scores), coverage))


def _read_evaluation(file: Path, name: str, into: Sources) -> None:
    results = _form(file, Evaluated)
    folder = file.parent / "samples"
    samples = {
        task: _samples(folder / f"{task.replace('/', '-')}.jsonl", into) for task in results.tasks
    }
    into.evaluations.append(Evaluation(name, file.parent, results, samples))


def _read_merge(file: Path, name: str, into: Sources) -> None:
    into.merges.append(Merge(name, file.parent, _form(file, Merged)))


def _read_routing(file: Path, name: str, into: Sources) -> None:
    into.routings.append(RoutingResult(name, file.parent, _form(file, Routed)))


def _read_study(file: Path, name: str, into: Sources) -> None:
    into.studies.append(Study(name, file.parent, _form(file, VariantStudy)))


_READERS: dict[str, Callable[[Path, str, Sources], None]] = {
    "run": _read_run,
    "scores": _read_scored,
    "merge": _read_merge,
    "evaluation": _read_evaluation,
    "routing": _read_routing,
    "variants": _read_study,
}
_NAMED = {
    "record.jsonl": "run",
    "scores.json": "scores",
    "merge.json": "merge",
    "results.json": "evaluation",
    "routing.json": "routing",
}


def _beside(file: Path, form: type[_Form], into: Sources) -> _Form | None:
    """What lies beside a record; None where nothing does, or nothing that can be read."""
    if not file.exists():
        return None
    try:
        return _form(file, form)
    except DataError as error:
        into.not_shown.append(str(error))
        return None


def _samples(file: Path, into: Sources) -> tuple[Sample, ...]:
    """The first answers of a task; a torn last line is left out."""
    if not file.exists():
        return ()
    found: list[Sample] = []
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in islice(lines, _MOST_SAMPLES):
            try:
                found.append(Sample.model_validate_json(line))
            except ValidationError:
                into.not_shown.append(f"{file}: lines from {len(found) + 1} on, not in our form")
                break
    return tuple(sorted(found, key=lambda sample: sample.item))


def _form(file: Path, form: type[_Form]) -> _Form:
    try:
        return form.model_validate(_json(file))
    except ValidationError as error:
        raise DataError(f"{file}: {_first_of(error)}") from None


def _first_of(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"not in the form expected: {'.'.join(map(str, first['loc']))}: {first['msg']}"


def _json(file: Path) -> dict[str, Any]:
    if file.stat().st_size > _MOST_BYTES:
        raise DataError(f"{file}: too long to be a result")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise DataError(f"{file}: not a JSON object")
    return content
