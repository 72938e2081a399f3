"""lm-evaluation-harness's humaneval and mbpp over local files, with nothing run.

``python code_harness.py DATA RESULT`` writes what is asked about each item, and in the place of a
score a number made of the program that would run. It is a process of its own, because it puts
another metric in the place of the one that the harness fetches.
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

PROGRAM = "    return 1\n"
"""What the model writes."""


def score(program: str) -> float:
    """Between 0 and 1, another for every program."""
    return int.from_bytes(hashlib.sha256(program.encode()).digest()[:4]) / 2**32


class Score:
    """In the place of code_eval, which runs programs where they are scored."""

    def compute(self, references: list[str], predictions: list[list[str]], k: list[int]) -> Any:
        """The score of the first program."""
        return {f"pass@{k[0]}": score(f"{predictions[0][0]}\n{references[0]}")}, {}


def run(data: Path, folder: Path) -> dict[str, Any]:
    """What is asked about every item, by task."""
    import datasets
    import evaluate
    import lm_eval
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    from benchmarks.measure.lm_harness import write_task

    class Writes(LM):
        def loglikelihood(self, requests, **_):
            return []

        loglikelihood_rolling = loglikelihood

        def generate_until(self, requests, **_):
            return [PROGRAM for _ in requests]

    datasets.disable_progress_bars()
    evaluate.load = lambda name: Score()
    names = ("humaneval", "mbpp")
    (folder / "tasks").mkdir()
    for name in names:
        files = {split: str(data / f"{name}.jsonl") for split in ("test", "train")}
        write_task(folder / "tasks" / f"{name}.yaml", name, f"{name}/{name}.yaml", files)
    call: Any = lm_eval.simple_evaluate
    found = call(
        model=Writes(),
        tasks=[*names],
        task_manager=TaskManager(include_path=str(folder / "tasks"), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
        confirm_run_unsafe_code=True,
    )
    return {name: [told(row) for row in found["samples"][name]] for name in names}


def told(row: dict[str, Any]) -> dict[str, Any]:
    """One item."""
    [(prompt, settings)] = row["arguments"]
    [metric] = row["metrics"]
    most = settings.get("max_gen_toks", 256)  # what its model classes take where nothing is said
    return {"prompt": prompt, "until": settings["until"], "most": most, "score": row[metric]}


if __name__ == "__main__":
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", LMEVAL_LOG_LEVEL="ERROR")
    source, result = map(Path, sys.argv[1:])
    result.write_text(json.dumps(run(source, result.parent)))
