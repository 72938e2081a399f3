"""lm-evaluation-harness over local files, with one checkpoint in two classes of models.

``python harness_job.py FOLDER`` reads FOLDER/job.json and writes FOLDER/result.json. It is a
process of its own, because the harness changes settings that a test process shares.
"""

import json
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def run(job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Scores and answers by model, and what the module does as a program."""
    import datasets
    import lm_eval.__main__
    from lm_eval.api.registry import get_model
    from lm_eval.tasks import TaskManager

    from benchmarks.measure.lm_harness import write_task

    datasets.disable_progress_bars()
    (folder / "tasks").mkdir()
    for name, (published, files) in job["tasks"].items():
        write_task(folder / "tasks" / f"{name}.yaml", name, published, files)
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    started: list[str] = []
    lm_eval.__main__.cli_evaluate = lambda: started.append(get_model("moesaic").__name__)
    runpy.run_module("moesaic.eval.harness", run_name="__main__")
    models = {
        name: evaluate(name, arguments, [*job["tasks"]], manager, job["most"])
        for name, arguments in job["models"].items()
    }
    return {"models": models, "started": started}


def evaluate(
    model: str, arguments: str, tasks: list[str], manager: Any, most: int
) -> dict[str, Any]:
    """The scores of every task, and the answers to every item."""
    import lm_eval

    call: Any = lm_eval.simple_evaluate
    found = call(
        model=model,
        model_args=arguments,
        tasks=tasks,
        task_manager=manager,
        device="cpu",
        batch_size=1,
        bootstrap_iters=0,
        log_samples=True,
        gen_kwargs=f"max_gen_toks={most}",
    )
    answers = {name: by_item(rows) for name, rows in found["samples"].items()}
    return {"scores": found["results"], "answers": answers}


def by_item(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What was answered about each item; once, though every filter has a row."""
    found = {row["doc_id"]: [answer for [answer] in row["resps"]] for row in rows}
    return [found[item] for item in sorted(found)]


if __name__ == "__main__":
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", LMEVAL_LOG_LEVEL="ERROR")
    place = Path(sys.argv[1])
    result = run(json.loads((place / "job.json").read_text()), place)
    (place / "result.json").write_text(json.dumps(result, default=str))
