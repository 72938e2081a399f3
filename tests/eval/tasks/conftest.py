"""Small data sets of our own making, in the forms that are read."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

Write = Callable[[str, Sequence[Mapping[str, Any]]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """``write("folder/name.jsonl", rows)``: a file below the folder of data, which comes back."""

    def save(name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path

    return save


@pytest.fixture
def problems() -> list[dict[str, str]]:
    """Twelve problems as GSM8K has them."""
    return [
        {
            "question": f"Ada has {n} pens and buys {n} more. How many has she?",
            "answer": f"She has {n} + {n} = <<{n}+{n}={2 * n}>>{2 * n} pens.\n#### {2 * n}",
        }
        for n in range(1, 13)
    ]
