"""Result files: what was measured, with what, on which machine."""

import json
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.measure.machine import machine_name
from moesaic.runlog import hardware, versions

RESULTS = Path(__file__).parents[1] / "results"


def write_result(what: str, cases: dict[str, Any], threads: int, folder: Path = RESULTS) -> Path:
    """Write ``<what>_<machine>_<date>.json``; cases measured again on one day replace the old ones.

    Args:
        what: the question.
        cases: name → numbers.
        threads: that torch used.
        folder: where to.
    """
    path = folder / f"{what}_{machine_name()}_{time.strftime('%Y-%m-%d')}.json"
    before = json.loads(path.read_text(encoding="utf-8"))["cases"] if path.exists() else {}
    stamped = {name: {"at": time.strftime("%H:%M"), **case} for name, case in cases.items()}
    content = {
        "what": what,
        "kind": what.removesuffix("-quick"),
        "hardware": hardware(),
        "threads": threads,
        "versions": {**versions(), "transformers": metadata.version("transformers")},
        "cases": {**before, **stamped},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
