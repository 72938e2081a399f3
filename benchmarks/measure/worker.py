"""A process that does one job: it gets ready, then runs groups of steps whenever it is told to.

It reads lines from standard input: the job, then the number of steps of each group. It answers each
with a line of JSON on standard output; what libraries print goes to standard error.
"""

import json
import os
import sys
import time
from importlib import import_module
from typing import Any, TextIO

import torch

from benchmarks.measure.cases import Job
from benchmarks.measure.machine import forget_peak, resident_bytes, watching_others
from benchmarks.measure.work import Work
from moesaic.runlog import peak_bytes

_WARM_STEPS = 2


def main() -> None:
    """Serve one job until standard input ends."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        job = Job.from_json(sys.stdin.readline())
        torch.set_num_threads(job.case.threads)
        side = import_module(f"benchmarks.measure.{_SIDES[job.setting.side]}")
        before = resident_bytes()
        work: Work = side.prepare(job)
        loading_peak = peak_bytes()
        forget_peak()
        evidence = work.evidence()
        _run(work, _WARM_STEPS)
        _answer(
            answers, {"evidence": evidence, "before_bytes": before, "loading_bytes": loading_peak}
        )
        for line in sys.stdin:
            with watching_others() as seen:
                seconds = _run(work, int(line))
            _answer(
                answers, {"seconds": seconds, "others": seen.others, "peak_bytes": peak_bytes()}
            )


_SIDES = {"moesaic": "ours", "transformers": "peer"}


def _run(work: Work, steps: int) -> list[float]:
    """Seconds of each of some steps."""
    work.restart()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        work.step()
        seconds.append(time.perf_counter() - start)
    return seconds


def _answer(answers: TextIO, found: dict[str, Any]) -> None:
    answers.write(json.dumps(found) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
