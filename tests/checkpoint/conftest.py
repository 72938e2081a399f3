"""Small checkpoints, and safetensors files written by hand so that they can be wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moesaic.checkpoint.fresh import fresh_tensor, write_fresh
from moesaic.checkpoint.save import write
from moesaic.config.model import ModelConfig

Craft = Callable[..., Path]
Fresh = Callable[..., Path]


@pytest.fixture
def craft(tmp_path: Path) -> Craft:
    """``craft(header, data)``: a file with just this header, JSON or bytes, and these bytes."""

    def build(header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> Path:
        path = tmp_path / "crafted.safetensors"
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        stated = len(text) if length is None else length
        path.write_bytes(stated.to_bytes(8, "little") + text + data)
        return path

    return build


@pytest.fixture
def fresh(tmp_path: Path, tiny_config: Callable[..., ModelConfig]) -> Fresh:
    """``fresh("v3", dtype="float32", **changes)``: a new checkpoint of a tiny model."""

    def build(family: str, dtype: str = "float32", name: str = "base", **changes: Any) -> Path:
        folder = tmp_path / name
        write_fresh(folder, tiny_config(family, **changes), dtype, 0, lambda spec: None)
        return folder

    return build


@pytest.fixture
def split(tmp_path: Path, tiny_config: Callable[..., ModelConfig]) -> Path:
    """A checkpoint in many files with an index."""
    folder, draw = tmp_path / "split", torch.Generator().manual_seed(0)
    write(
        folder,
        tiny_config("v2"),
        lambda spec: fresh_tensor(spec, 0.1, torch.float32, draw),
        "float32",
        file_bytes=10_000,
    )
    return folder
