"""The golden runs: three small models on Shakespeare's plays, fifty steps each.

``python tests/golden/curves.py`` writes their losses anew, after a change meant to alter them.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from moesaic.config.train import TrainConfig
from moesaic.runlog import read_run
from moesaic.train.loop import train

FOLDER = Path(__file__).parent
TOKENIZER = FOLDER / "tokenizer"
RUNS = ("v1", "v2", "v3")
TERMS = ("next_token", "mtp", "expert_loss", "device_loss", "communication_loss", "sequence_loss")


def curves_of(name: str, folder: Path, **changes: Any) -> dict[str, list[float]]:
    """Every term of the objective at every step of a golden run."""
    settings = json.loads((FOLDER / f"{name}.json").read_text())["run"]
    places = {"folder": str(folder / name), "tokenizer": str(TOKENIZER)}
    config = TrainConfig.parse({**settings, **places, **changes})
    train(config)
    lines = read_run(folder / name / "record.jsonl").of("step")
    return {term: [line[term] for line in lines] for term in TERMS if term in lines[0]}


def main() -> None:
    """Write the curves of all runs."""
    torch.set_num_threads(1)
    for name in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            curves = curves_of(name, Path(folder))
        path = FOLDER / f"{name}.json"
        content = {**json.loads(path.read_text()), "curves": curves}
        path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
