"""Change a sound checkpoint into one that is wrong in a single way."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from moesaic.checkpoint.check import Report
from moesaic.checkpoint.files import read_safetensors, write_safetensors
from moesaic.checkpoint.folder import Kind
from moesaic.checkpoint.load import Reader
from moesaic.errors import CheckpointError


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Rewrite the single file of a checkpoint after ``change`` has changed its tensors."""
    path = folder / "model.safetensors"
    found = read_safetensors(path)
    change(found)
    write_safetensors(path, found)


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite a JSON file after ``change`` has changed its object."""
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def only_problem(report: Report, kind: Kind, name: str) -> str:
    """The text of a report's one problem, which whoever reads the folder is told."""
    assert [(problem.kind, problem.name) for problem in report.problems] == [(kind, name)]
    assert not report.is_sound
    with pytest.raises(CheckpointError, match="cannot be read") as error:
        Reader(report.folder)
    assert report.problems[0].text in str(error.value)
    assert report.problems[0].text in report.text()
    return report.problems[0].text
