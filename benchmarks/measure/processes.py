"""`Worker`: a setting in a process of its own, so that memory and settings do not mix."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self

from benchmarks.measure.cases import DECODED, Job
from benchmarks.measure.machine import Ceiling
from benchmarks.measure.work import Evidence

ROOT = Path(__file__).parents[2]


class WorkerError(Exception):
    """A setting that cannot do the case; the message is the last line it printed."""


@dataclass(frozen=True, slots=True)
class Group:
    """Steps measured one after the other."""

    seconds: tuple[float, ...]
    others: float | None
    """Share of the processors that other processes used meanwhile."""
    peak_bytes: int
    """Most memory of the process since the model was loaded."""

    @property
    def typical(self) -> float:
        """Median seconds of a step."""
        return median(self.seconds)


class Worker:
    """A process that has loaded one side and runs steps when asked. A context manager."""

    def __init__(self, job: Job) -> None:
        """Start it and wait until it has loaded the model.

        Raises:
            WorkerError: if that fails.
        """
        self.job = job
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115, closed in close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.measure.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            text=True,
            cwd=ROOT,
            env={**os.environ, **job.setting.environment},
        )
        ready = self._ask(job.to_json())
        self.evidence: Evidence = ready["evidence"]
        self.before_bytes: int = ready["before_bytes"]
        """Memory before the model was loaded."""
        self.loading_bytes: int = ready["loading_bytes"]
        """Most memory while it was."""

    def run(self, at_least_s: float) -> Group:
        """Measure a group of steps that takes about this long."""
        if self.job.case.task == "decode":
            return self._run(DECODED)
        first = self._run(1)
        steps = int(at_least_s / first.seconds[0])
        return self._run(steps) if steps > 1 else first

    def _run(self, steps: int) -> Group:
        found = self._ask(str(steps))
        return Group(tuple(found["seconds"]), found["others"], found["peak_bytes"])

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        with self._process, self._printed:
            pass

    def _ask(self, line: str) -> dict[str, Any]:
        """The answer to a line.

        Raises:
            WorkerError: if the process has ended instead.
        """
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        except BaseException:
            self.close()
            raise
        if not answer:
            status = self._process.wait()
            self._printed.seek(0)
            words = self._printed.read().decode(errors="replace").strip().splitlines()
            self.close()
            raise WorkerError(words[-1] if words else f"ended with status {status}")
        return json.loads(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def described(worker: Worker, groups: list[Group], ceiling: Ceiling) -> dict[str, Any]:
    """What a setting reached, for the result file."""
    case, setting = worker.job.case, worker.job.setting
    seconds = median(second for group in groups for second in group.seconds)
    speed, peak = case.flops / seconds, max(group.peak_bytes for group in groups)
    found = {
        "setting": setting.name,
        "tokens_per_s": round(case.tokens / seconds, 2),
        "ms_per_step": round(1000 * seconds, 3),
        "steps": sum(len(group.seconds) for group in groups),
        "gflops": round(speed / 1e9, 2),
        "share_of_matmul_ceiling": round(speed / ceiling.flops(setting.precision), 4),
        "peak_bytes": peak,
        "peak_over_start_bytes": peak - worker.before_bytes,
        "loading_peak_bytes": worker.loading_bytes,
        "others": max((group.others or 0.0 for group in groups), default=0.0),
    }
    if case.task == "decode":
        read = case.bytes_read(setting.precision) / seconds
        found["share_of_read_ceiling"] = round(read / ceiling.read, 4)
    return found
