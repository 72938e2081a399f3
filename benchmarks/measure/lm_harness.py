"""lm-evaluation-harness over local files, with a model whose answers follow from the requests, or
with one of its own classes of models.

It runs in a process of its own, because it changes settings that a process shares:
``python lm_harness.py FOLDER`` reads FOLDER/job.json and writes FOLDER/result.json.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def log_probability(context: str, continuation: str) -> float:
    """Between -40 and 0, as if drawn at random for every pair of texts."""
    return -40.0 * _hash(f"{context}\0{continuation}") / 2**64


def writes(prompt: str, answers: Mapping[str, Sequence[str]]) -> str:
    """One of the texts that are given for the question at the end of a prompt."""
    texts = answers[max(answers, key=prompt.rfind)]
    return texts[_hash(prompt) % len(texts)]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def run(job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """For every evaluation of a job: what was asked and scored, by task and item, and the means."""
    import datasets
    from lm_eval.tasks import TaskManager

    datasets.disable_progress_bars()
    tasks = folder / "tasks"
    tasks.mkdir()
    for name, (published, files) in job["tasks"].items():
        write_task(tasks / f"{name}.yaml", name, published, files)
    for published in job["groups"]:
        (tasks / f"{Path(published).stem}.yaml").write_text(f"include: {installed(published)}\n")
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    scripted = scripted_model(job["answers"])
    return {
        name: evaluate(manager, {"model": scripted, **settings})
        for name, settings in job["evaluations"].items()
    }


def write_task(file: Path, name: str, published: str, files: Mapping[str, str]) -> None:
    """Describe a published task on local files."""
    task = {
        "include": installed(published),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
    }
    file.write_text(json.dumps(task))


def installed(published: str) -> str:
    """Where the file of a published task is."""
    import lm_eval.tasks

    return str(Path(lm_eval.tasks.__file__).parent / published)


def scripted_model(answers: Mapping[str, Sequence[str]]) -> Any:
    """A model that makes answers up from the texts of requests."""
    from lm_eval.api.model import LM

    class Scripted(LM):
        def loglikelihood(self, requests, **_):
            return [(log_probability(*request.args), False) for request in requests]

        def loglikelihood_rolling(self, requests, **_):
            return [log_probability("", request.args[0]) for request in requests]

        def generate_until(self, requests, **_):
            return [writes(request.args[0], answers) for request in requests]

    return Scripted()


def evaluate(manager: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """One call of the harness, with its arguments as settings."""
    import lm_eval

    call: Any = lm_eval.simple_evaluate
    evaluated = call(task_manager=manager, bootstrap_iters=0, log_samples=True, **settings)
    return {
        "items": {name: by_item(rows) for name, rows in evaluated["samples"].items()},
        "means": {**evaluated["results"], **evaluated.get("groups", {})},
        "versions": evaluated["versions"],
    }


def by_item(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was asked about each item and answered, and its metrics with the names of their
    filters."""
    items: dict[int, dict[str, Any]] = {}
    for row in rows:
        item = items.setdefault(row["doc_id"], {"requests": row["arguments"], "values": {}})
        item["answers"] = [answer for [answer] in row["resps"]]
        suffix = "" if row["filter"] == "none" else f",{row['filter']}"
        for metric in row["metrics"]:
            item["values"][f"{metric}{suffix}"] = float(row[metric])
    return [items[place] for place in sorted(items)]


if __name__ == "__main__":
    place = Path(sys.argv[1])
    os.environ.update(
        HF_HOME=str(place / "hub"),
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        LMEVAL_LOG_LEVEL="ERROR",
    )
    result = run(json.loads((place / "job.json").read_text()), place)
    (place / "result.json").write_text(json.dumps(result, default=str))
