"""`find_task`: a task by the name that lm-evaluation-harness gives it."""

from pathlib import Path

from moesaic.errors import ConfigError, suggest
from moesaic.eval.task import Task
from moesaic.eval.tasks import (
    arc,
    boolq,
    cmath,
    code,
    gsm8k,
    hellaswag,
    mgsm,
    mmlu,
    openbookqa,
    perplexity,
)
from moesaic.eval.tasks.options import Options
from moesaic.eval.tasks.prompts import HARNESS_SEED

_MODULES = (arc, boolq, cmath, code, gsm8k, hellaswag, mgsm, mmlu, openbookqa, perplexity)
TASKS = tuple(sorted(name for module in _MODULES for name in module.TASKS))
"""Names of tasks; beside them each subject of MMLU is one: ``mmlu_anatomy``."""


def find_task(
    name: str,
    data: Path,
    limit: int | None = None,
    shots: int | None = None,
    seed: int = HARNESS_SEED,
    allow_code: bool = False,
) -> Task:
    """A task with its items.

    Args:
        name: one of `TASKS`, or ``mmlu_`` with a subject.
        data: folder that holds the files of data sets, in any sub-folder; for perplexity a file, a
            pattern, or ``corpus:NAME``.
        limit: only so many of the first items, of each subject in MMLU; None for all.
        shots: examples before each question; None for the task's own number.
        seed: of the draws of examples; the default draws those of lm-evaluation-harness.
        allow_code: run programs that the model writes, which tasks of code need.

    Raises:
        ConfigError: if there is no such task, or a number is out of range.
        DataError: if its data is not there or not readable.
    """
    check_name(name)
    options = Options(data, limit, shots, seed, allow_code)
    for module in _MODULES:
        if name in module.TASKS:
            return module.find_task(name, options)
    return mmlu.find_task(name, options)


def check_name(name: str) -> None:
    """See that there is such a task.

    Raises:
        ConfigError: if not; the message lists all.
    """
    known = (*TASKS, *mmlu.SUBJECT_TASKS)
    if name not in known:
        raise ConfigError(
            f"{name!r} is no task{suggest(name, known)}; there are: {', '.join(TASKS)}, and the "
            "subjects of mmlu, as mmlu_anatomy"
        )
