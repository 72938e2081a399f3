"""HumanEval and MBPP: what is asked, what is run, and how programs become a score."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import combinations
from math import comb
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from eval import code_harness

from moesaic.errors import ConfigError, DataError
from moesaic.eval.requests import Generation, GenerationAnswer
from moesaic.eval.tasks.code import CodeTask, pass_at_k
from moesaic.eval.tasks.registry import find_task

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the system has no limits")

FUNCTIONS = [
    {
        "task_id": f"Own/{n}",
        "prompt": f'import math\n\n\ndef add_{n}(x):\n    """Add {n} to x.\n    >>> add_{n}(1)\n'
        f'    {n + 1}\n    """\n',
        "entry_point": f"add_{n}",
        "canonical_solution": f"    return x + {n}\n",
        "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n"
        f"    assert candidate(1) == {n + 1}\n    assert candidate(-{n}) == 0\n",
    }
    for n in range(3)
]
PROBLEMS = [
    {
        "text": f"Write a function to multiply a number by {n}.",
        "code": f"def times(x):\r\n  return {n} * x",
        "task_id": n,
        "test_setup_code": "",
        "test_list": [
            *(f"assert times({x}) == {n * x}" for x in range(3)),
            "assert False, 'a fourth test'",
        ],
        "challenge_test_list": [],
    }
    for n in (2, 10, 11, 12, 510, 511)
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, rows in (("humaneval", FUNCTIONS), ("mbpp", PROBLEMS)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    return tmp_path


@pytest.fixture
def humaneval(data: Path) -> CodeTask:
    task = find_task("humaneval", data, allow_code=True)
    assert isinstance(task, CodeTask)
    return task


@pytest.fixture
def mbpp(data: Path) -> CodeTask:
    task = find_task("mbpp", data, allow_code=True)
    assert isinstance(task, CodeTask)
    return task


def judge(task: CodeTask, item: Mapping[str, Any], *programs: str) -> Mapping[str, Any]:
    return task.judge(item, [GenerationAnswer(text, 1) for text in programs]).values


def test_a_function_is_asked_for_by_its_head_alone(humaneval: CodeTask):
    [asked] = humaneval.requests(humaneval.items[1])
    assert isinstance(asked, Generation)
    assert asked.prompt == FUNCTIONS[1]["prompt"]
    assert asked.stop == ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
    assert (asked.max_new_tokens, asked.temperature) == (1024, 0.0)


def test_the_published_solutions_pass_and_others_fail(humaneval: CodeTask, mbpp: CodeTask):
    for task in (humaneval, mbpp):
        for item in task.items:
            assert judge(task, item, item["solution"]) == {"pass@1": 1.0}
        assert judge(task, task.items[0], "    return None\n") == {"pass@1": 0.0}


def test_a_person_reads_the_program_and_what_became_of_it(humaneval: CodeTask):
    item = humaneval.items[2]
    judged = humaneval.judge(item, [GenerationAnswer("    return y\n", 1)])
    assert judged.answer == "    return y\n\n# NameError: name 'y' is not defined"
    assert judged.target == "    return x + 2\n"
    right = humaneval.judge(item, [GenerationAnswer("    return x + 2\n", 1)])
    assert right.answer.endswith("\n# passed")


def test_of_mbpp_the_test_split_is_asked(mbpp: CodeTask):
    assert [item["solution"] for item in mbpp.items] == [
        f"def times(x):\r\n  return {n} * x" for n in (11, 12, 510)
    ]


def test_mbpp_shows_three_examples_and_three_tests(mbpp: CodeTask):
    [asked] = mbpp.requests(mbpp.items[0])
    assert isinstance(asked, Generation)
    assert asked.prompt.count("You are an expert Python programmer") == 4
    assert asked.prompt.count("[DONE]\n\n") == 3
    assert asked.prompt.endswith(
        "You are an expert Python programmer, and here is your task: Write a function to multiply "
        "a number by 11. Your code should pass these tests:\n\nassert times(0) == 0\n"
        "assert times(1) == 11\nassert times(2) == 22\n[BEGIN]\n"
    )
    assert asked.stop == ("[DONE]",)


def test_fewer_examples_are_shown_if_asked(data: Path):
    task = find_task("mbpp", data, shots=1, allow_code=True)
    [asked] = task.requests(task.items[0])
    assert isinstance(asked, Generation)
    assert asked.prompt.count("[DONE]\n\n") == 1
    assert task.description["shots"] == 1


def test_the_description_says_what_bounds_and_guards_programs(humaneval: CodeTask):
    description = humaneval.description
    assert description["limits"]["memory_bytes"] == 1 << 30
    assert set(description["isolation"]) == {"memory", "calls", "files"}
    assert json.loads(json.dumps(description)) == description


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_no_program_runs_without_leave(data: Path, name: str):
    with pytest.raises(ConfigError, match=f"{name} runs programs .* set allow_code=true if you"):
        find_task(name, data)


@pytest.mark.parametrize(
    ("name", "shots", "message"),
    [
        ("humaneval", 1, "shots=1: humaneval has no examples before its functions; leave shots"),
        ("mbpp", 4, "shots=4: mbpp has 3 examples, no more"),
    ],
)
def test_examples_that_are_not_there_are_refused(data: Path, name: str, shots: int, message: str):
    with pytest.raises(ConfigError, match=message):
        find_task(name, data, shots=shots, allow_code=True)


def test_data_without_the_test_split_is_refused(data: Path):
    (data / "mbpp.jsonl").write_text(json.dumps(PROBLEMS[0]) + "\n")
    with pytest.raises(DataError, match=r"no rows of mbpp's test split; .* task_id from 11 to 510"):
        find_task("mbpp", data, allow_code=True)


def test_several_programs_give_pass_at_k(humaneval: CodeTask):
    task = replace(humaneval, samples=10, temperature=0.8)
    item = task.items[1]
    assert [metric.name for metric in task.metrics] == ["pass@1", "pass@10"]
    assert len(task.requests(item)) == 10
    assert task.description["samples"] == 10
    programs = [item["solution"]] * 3 + ["    return 0\n"] * 7
    assert judge(task, item, *programs) == {"pass@1": pytest.approx(0.3), "pass@10": 1.0}


def test_several_programs_need_a_temperature(humaneval: CodeTask):
    with pytest.raises(ConfigError, match="samples=10 at temperature=0 are all the same; give a"):
        replace(humaneval, samples=10)


@pytest.mark.parametrize("passed", range(6))
@pytest.mark.parametrize("k", [1, 2, 5])
def test_pass_at_k_is_the_share_of_choices_of_k_in_which_one_passes(passed: int, k: int):
    programs = [n < passed for n in range(5)]
    share = fmean(any(chosen) for chosen in combinations(programs, k))
    assert pass_at_k(5, passed, k) == pytest.approx(share)


@pytest.mark.parametrize("k", [1, 3])
def test_pass_at_k_is_unbiased(k: int):
    rate, drawn = 0.3, 6
    weights = [comb(drawn, c) * rate**c * (1 - rate) ** (drawn - c) for c in range(drawn + 1)]
    expected = sum(w * pass_at_k(drawn, c, k) for c, w in enumerate(weights))
    assert expected == pytest.approx(1 - (1 - rate) ** k)


@pytest.mark.parity
@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is not installed")
def test_the_harness_asks_the_same_and_runs_the_same(data: Path, tmp_path: Path):
    """The harness's scores are made of the very programs it would run, and equal those of ours."""
    split = [row for row in PROBLEMS if row["task_id"] in (11, 12, 510)]
    (data / "mbpp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in split))
    theirs = harness(data, tmp_path)
    for name in ("humaneval", "mbpp"):
        task = find_task(name, data, allow_code=True)
        assert isinstance(task, CodeTask)
        assert [in_their_form(task, item) for item in task.items] == theirs[name]


def harness(data: Path, folder: Path) -> Mapping[str, Sequence[Any]]:
    tests = Path(__file__).parents[1]
    command = [sys.executable, code_harness.__file__, str(data), str(folder / "result.json")]
    path = os.pathsep.join((str(tests.parent), str(tests)))
    environment = {**os.environ, "PYTHONPATH": path, "HF_HOME": str(folder / "hub")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "result.json").read_text())


def in_their_form(task: CodeTask, item: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked, until what, how long, and a number for what would be run."""
    [asked] = task.requests(item)
    assert isinstance(asked, Generation)
    program = f"{item['head']}{code_harness.PROGRAM}\n{item['tests']}"
    return {
        "prompt": asked.prompt,
        "until": [*asked.stop],
        "most": asked.max_new_tokens,
        "score": code_harness.score(program),
    }
