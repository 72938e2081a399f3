"""The published tasks ask, stop and score exactly as lm-evaluation-harness does."""

import json
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from parity.published_tasks import ANSWERS, GROUPS, SUBJECTS, write_data

from benchmarks.measure import lm_harness
from moesaic.eval.requests import (
    Answer,
    Generation,
    GenerationAnswer,
    Likelihood,
    LikelihoodAnswer,
    Request,
)
from moesaic.eval.task import Task
from moesaic.eval.tasks.registry import find_task

pytestmark = [
    pytest.mark.parity,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is not installed"),
]

MMLU = [f"mmlu_{subject}" for subject in SUBJECTS]
OTHERS = ["arc_challenge", "arc_easy", "boolq", "gsm8k", "gsm8k_cot", "hellaswag", "openbookqa"]
MGSM = [
    f"mgsm_{kind}_{code}"
    for kind in ("direct", "native_cot")
    for code in ("de", "en", "es", "fr", "ja", "ru", "zh")
]
EVALUATIONS: dict[str, dict[str, Any]] = {
    "with the task's own shots": {"tasks": [*OTHERS, *MGSM]},
    "with three shots of another seed": {
        "tasks": [*OTHERS, *MGSM, "mmlu"],
        "num_fewshot": 3,
        "fewshot_random_seed": 7,
    },
    "with five shots, of few items": {
        "tasks": [*OTHERS, "mmlu"],
        "num_fewshot": 5,
        "limit": 2,
    },
}
CASES = [
    (name, task)
    for name, settings in EVALUATIONS.items()
    for listed in settings["tasks"]
    for task in (MMLU if listed == "mmlu" else [listed])
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("harness")


@pytest.fixture(scope="module")
def theirs(data: Path) -> Mapping[str, Any]:
    """What the harness makes of the same files, with the same scripted model."""
    job = {
        "tasks": write_data(data / "data"),
        "groups": [f"mmlu/default/{group}.yaml" for group in GROUPS],
        "answers": ANSWERS,
        "evaluations": EVALUATIONS,
    }
    (data / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-P", lm_harness.__file__, str(data)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((data / "result.json").read_text())


def ours(data: Path, evaluation: str, name: str) -> Task:
    settings = EVALUATIONS[evaluation]
    return find_task(
        name,
        data / "data",
        limit=settings.get("limit"),
        shots=settings.get("num_fewshot"),
        seed=settings.get("fewshot_random_seed", 1234),
    )


def in_their_form(request: Request) -> list[Any]:
    if isinstance(request, Likelihood):
        return [request.context, request.continuation]
    assert isinstance(request, Generation)
    return [request.prompt, list(request.stop)]


def answer(request: Request) -> Answer:
    if isinstance(request, Likelihood):
        p = lm_harness.log_probability(request.context, request.continuation)
        return LikelihoodAnswer(p, is_greedy=False, tokens=1)
    assert isinstance(request, Generation)
    return GenerationAnswer(lm_harness.writes(request.prompt, ANSWERS), tokens=1)


def values(task: Task) -> list[dict[str, float]]:
    """Every item's metrics, given the scripted model's answers."""
    judged = [
        task.judge(item, [answer(request) for request in task.requests(item)])
        for item in task.items
    ]
    return [{k: v for k, v in j.values.items() if isinstance(v, float)} for j in judged]


@pytest.mark.parametrize(("evaluation", "name"), CASES)
def test_every_request_is_the_same(theirs, data: Path, evaluation: str, name: str):
    task = ours(data, evaluation, name)
    asked = [[in_their_form(r) for r in task.requests(item)] for item in task.items]
    expected = [
        [
            [text, rest["until"] if isinstance(rest, dict) else rest]
            for text, rest in item["requests"]
        ]
        for item in theirs[evaluation]["items"][name]
    ]
    assert asked == expected


@pytest.mark.parametrize(("evaluation", "name"), CASES)
def test_every_item_scores_the_same(theirs, data: Path, evaluation: str, name: str):
    scored = values(ours(data, evaluation, name))
    assert scored == [item["values"] for item in theirs[evaluation]["items"][name]]


@pytest.mark.parametrize(("evaluation", "name"), CASES)
def test_the_scores_and_versions_are_the_same(theirs, data: Path, evaluation: str, name: str):
    task = ours(data, evaluation, name)
    scored, means = values(task), theirs[evaluation]["means"][name]
    for metric in task.metrics:
        key = metric.name if "," in metric.name else f"{metric.name},none"
        assert fmean(item[metric.name] for item in scored) == pytest.approx(means[key], abs=1e-12)
    assert task.description["version"] == theirs[evaluation]["versions"][name]


@pytest.mark.parametrize("evaluation", [name for name, task in CASES if task == MMLU[0]])
def test_the_mean_over_items_is_theirs_of_subjects_by_size(theirs, data: Path, evaluation: str):
    scored = [item["acc"] for name in MMLU for item in values(ours(data, evaluation, name))]
    assert fmean(scored) == pytest.approx(
        theirs[evaluation]["means"]["mmlu"]["acc,none"], abs=1e-12
    )


def test_scripted_answers_are_right_and_wrong_in_every_task(theirs):
    means = theirs["with three shots of another seed"]["means"]
    for name in (*OTHERS, *MGSM):
        scores = [value for value in means[name].values() if isinstance(value, float)]
        assert any(0 < score < 1 for score in scores), name
