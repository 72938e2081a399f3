"""HumanEval and MBPP: programs that a model writes, run against tests.

``humaneval`` gives the head of a function, ``mbpp`` a sentence and three tests, behind three
examples. Both run what comes back, so both ask for leave: `Options.allow_code`.

Source: Chen et al. (arXiv 2107.03374) and Austin et al. (arXiv 2108.07732); prompts, stop texts and
the tests that count as in lm-evaluation-harness (MIT), tasks humaneval and mbpp, version 1.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import comb
from typing import Any

from moesaic.errors import ConfigError
from moesaic.eval.items import Row
from moesaic.eval.requests import Answer, Generation, GenerationAnswer
from moesaic.eval.sandbox import Limits, isolation, run_code
from moesaic.eval.task import Item, Judgement, Metric
from moesaic.eval.tasks.files import Split, load
from moesaic.eval.tasks.generation import MAX_NEW_TOKENS
from moesaic.eval.tasks.mbpp_examples import EXAMPLES
from moesaic.eval.tasks.options import Options
from moesaic.eval.tasks.prompts import Prompts, first_examples

TASKS = ("humaneval", "mbpp")

_VERSION = 1
_K = (1, 10, 100)
_MBPP_TEST = range(11, 511)
"""Numbers of MBPP's problems that are its test split; those before are for examples."""
_MBPP_TESTS = 3
"""Tests shown and run; a few problems have more, which the harness leaves out."""


def find_task(name: str, options: Options) -> "CodeTask":
    """``humaneval`` or ``mbpp``.

    Raises:
        ConfigError: if running code was not allowed, cannot be bounded on this machine, or there
            are not so many examples.
        DataError: if the data is not there or not readable.
    """
    if not options.allow_code:
        raise ConfigError(
            f"{name} runs programs that the model writes, in a limited process that is no prison; "
            "set allow_code=true if you trust the model that far on this machine, or leave "
            f"{name} out"
        )
    return _mbpp(options) if name == "mbpp" else _humaneval(options)


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Probability that at least one of k programs passes, given how many of some did.

    The estimate is unbiased; one minus the k-th power of the share that failed is not.

    Args:
        samples: programs that were run for one problem, at least k.
        passed: how many of them passed.
        k: how many may be tried.

    Source: Chen et al. (arXiv 2107.03374) section 2.1, eq. 1.
    """
    return 1.0 - comb(samples - passed, k) / comb(samples, k)


@dataclass(frozen=True, slots=True)
class CodeTask:
    """Problems whose answers are programs.

    For pass@k with k over 1, draw several programs for each problem:
    ``dataclasses.replace(task, samples=20, temperature=0.8)``.
    """

    name: str
    items: Sequence[Item]
    """Each has a ``prompt``, a ``head`` that the answer is added to, ``tests`` and a
    ``solution``."""
    prompts: Prompts
    stop: tuple[str, ...]
    max_new_tokens: int
    details: Mapping[str, Any]
    samples: int = 1
    temperature: float = 0.0
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Check that the programs drawn can differ.

        Raises:
            ConfigError: if there are several and all are the most probable one.
        """
        if self.samples > 1 and not self.temperature:
            raise ConfigError(
                f"samples={self.samples} at temperature=0 are all the same; give a temperature, "
                "as 0.8, or samples=1"
            )

    @property
    def metrics(self) -> Sequence[Metric]:
        """Pass@1, and pass@10 and pass@100 where as many programs are drawn."""
        return [Metric(f"pass@{k}") for k in self._ks]

    @property
    def description(self) -> Mapping[str, Any]:
        """Everything that decides a score, and what guards the machine."""
        return {
            "version": _VERSION,
            **self.details,
            "samples": self.samples,
            "temperature": self.temperature,
            "python": platform.python_version(),
            "limits": asdict(self.limits),
        }

    def group(self, item: Item) -> str | None:
        """No parts."""
        return None

    def requests(self, item: Item) -> Sequence[Generation]:
        """What program does the model write?"""
        prompt = self.prompts.text(item)
        asked = Generation(prompt, self.stop, self.max_new_tokens, self.temperature)
        return [asked] * self.samples

    def judge(self, item: Item, answers: Sequence[Answer]) -> Judgement:
        """Run every program; the first is the one to read, with what became of it below."""
        texts = [answer.text for answer in answers if isinstance(answer, GenerationAnswer)]
        outcomes = [run_code(item["head"] + text, item["tests"], self.limits) for text in texts]
        passed = sum(outcome.passed for outcome in outcomes)
        verdict = "passed" if outcomes[0].passed else outcomes[0].reason
        return Judgement(
            {f"pass@{k}": pass_at_k(len(outcomes), passed, k) for k in self._ks},
            answer=f"{texts[0]}\n# {verdict}",
            target=item["solution"],
        )

    @property
    def _ks(self) -> list[int]:
        return [k for k in _K if k <= self.samples]


def _humaneval(options: Options) -> CodeTask:
    if options.shots:
        raise ConfigError(
            f"shots={options.shots}: humaneval has no examples before its functions; "
            "leave shots out"
        )
    names = ("humaneval", "HumanEval", "openai_humaneval/test")
    fields = "prompt, test and entry_point"
    loaded = load(Split("humaneval's problems", names, fields, _function), options.data)
    return CodeTask(
        name="humaneval",
        items=options.first(loaded.items),
        prompts=Prompts(),
        stop=("\nclass", "\ndef", "\n#", "\nif", "\nprint"),
        max_new_tokens=1024,
        details={"shots": 0, "data": loaded.origin, "isolation": isolation()},
    )


def _function(row: Row) -> Item:
    tests = f"{row.text('test')}\ncheck({row.text('entry_point')})"
    return {
        "prompt": row.text("prompt"),
        "head": row.text("prompt"),
        "tests": tests,
        "solution": _solution(row, "canonical_solution", tests),
    }


def _mbpp(options: Options) -> CodeTask:
    shots = len(EXAMPLES) if options.shots is None else options.shots
    if shots > len(EXAMPLES):
        raise ConfigError(f"shots={shots}: mbpp has {len(EXAMPLES)} examples, no more")
    split = Split(
        "mbpp's test split",
        ("mbpp", "mbpp/test", "mbpp/full/test"),
        f"text, test_list and a task_id from {_MBPP_TEST.start} to {_MBPP_TEST.stop - 1}",
        _problem,
    )
    loaded = load(split, options.data)
    pool = [
        {"prompt": _mbpp_prompt(text, tests), "answer": f"{code}\n[DONE]"}
        for text, code, tests in EXAMPLES
    ]
    return CodeTask(
        name="mbpp",
        items=first_examples(options.first(loaded.items), pool, shots),
        prompts=Prompts(pool, delimiter=""),
        stop=("[DONE]",),
        max_new_tokens=MAX_NEW_TOKENS,
        details={"shots": shots, "data": loaded.origin, "isolation": isolation()},
    )


def _problem(row: Row) -> Item | None:
    if row.number("task_id") not in _MBPP_TEST:
        return None
    tests = row.texts("test_list")[:_MBPP_TESTS]
    return {
        "prompt": _mbpp_prompt(row.text("text"), tests),
        "head": "",
        "tests": "\n".join(tests),
        "solution": _solution(row, "code", "\n".join(tests)),
    }


def _mbpp_prompt(text: str, tests: Sequence[str]) -> str:
    return (
        f"You are an expert Python programmer, and here is your task: {text} Your code should pass "
        "these tests:\n\n" + "\n".join(tests) + "\n[BEGIN]\n"
    )


def _solution(row: Row, name: str, tests: str) -> str:
    """A program that is right, or what makes it so."""
    return row.text(name) if row.has(name) else tests
