"""A small tokenizer, and files to read."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from moesaic.config.data import DataConfig
from moesaic.data.bpe import train_bpe
from moesaic.data.tokenizer import Tokenizer

TEXTS = (
    "The router sends every token to a few of many experts, and the shared experts see them all.",
    "Le routeur envoie chaque mot à quelques experts ; les experts communs les voient tous.",
    "Question: 48 clips in April, half as many in May; how many in all?\nAnswer: 48 + 24 = 72.\n\n",
    "学而时习之 不亦说乎 有朋自远方来 不亦乐乎",
)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A few hundred tokens, learned from a few sentences."""
    return train_bpe(TEXTS * 4, 340)


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., str]:
    """``write_rows(rows, name="rows.jsonl")``: the path of a JSONL file."""

    def write(rows: Sequence[Any], name: str = "rows.jsonl") -> str:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return str(tmp_path / name)

    return write


@pytest.fixture
def data_config(write_rows: Callable[..., str]) -> Callable[..., DataConfig]:
    """``data_config(rows, **settings)``: settings that read these rows, all for training."""

    def build(
        *sources: Sequence[Any], weights: Sequence[float] = (), **settings: Any
    ) -> DataConfig:
        paths = [write_rows(rows, f"{number}.jsonl") for number, rows in enumerate(sources)]
        entries = [
            {"path": path, "weight": float(weight), "split": "all"}
            for path, weight in zip(paths, weights or [1.0] * len(paths), strict=True)
        ]
        return DataConfig.parse({"sources": entries, "seq_len": 16, **settings})

    return build
