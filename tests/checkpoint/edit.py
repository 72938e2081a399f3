"""Change a sound checkpoint into one that is wrong in a single way."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from moesaic.checkpoint.files import read_safetensors, write_safetensors


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
