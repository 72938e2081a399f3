"""What a run's record says, as numbers that sections ask for."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from moesaic.report.sources import Run
from moesaic.runlog import Line

_WARM = 3
"""Steps at the beginning, of every time a run was taken up, that say nothing of its speed."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a run was, and where its time went."""

    tokens_per_s: float
    """Median over steps."""
    slow: float
    """The speed that nine in ten steps reach."""
    tokens: int
    steps: int
    wall_s: float
    """From the first line to the last, without the time the run was stopped."""
    training_s: float | None
    """In steps alone; None where not every step was written down."""
    peak_bytes: int


def steps_of(run: Run) -> list[Line]:
    """Lines of steps whose loss is a number."""
    return [line for line in run.record.of("step") if isinstance(line.get("next_token"), float)]


def held_out(run: Run) -> dict[str, list[tuple[int, float]]]:
    """Domain → (step, loss) of every evaluation."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in run.record.of("evaluation"):
        found.setdefault(line["domain"], []).append((line["step"], line["loss"]))
    return found


def task_domains(run: Run) -> list[str]:
    """Domains held out of what the run trains on."""
    trained = {source["path"] for source in run.config["data"]["sources"]}
    domains = (run.config.get("evaluation") or {}).get("domains", {})
    return [name for name, source in domains.items() if source["path"] in trained]


def is_restricted(run: Run) -> bool:
    """Whether its router may choose fewer experts than the model has."""
    esft = run.config.get("esft")
    return esft is not None and esft["variant"] != "natural"


def base_of(run: Run, runs: Sequence[Run]) -> Run | None:
    """The run among these whose final model this one began with."""
    model = run.config["model"]
    if not isinstance(model, str):
        return None
    wanted = Path(model).resolve()
    return next((other for other in runs if (other.folder / "model").resolve() == wanted), None)


def is_over(run: Run) -> bool:
    """Whether all its steps are done, or its data are at an end."""
    steps = run.record.of("step")
    done = steps[-1]["step"] if steps else 0
    return done >= run.config["steps"] or bool(run.record.of("end of data"))


def pace(run: Run) -> Pace | None:
    """Speed and time; None before the first step."""
    steps = run.record.of("step")
    if not steps:
        return None
    starts = {0, *(line["step"] for line in run.record.resumed)}
    warm = {start + place for start in starts for place in range(1, _WARM + 1)}
    speeds = [line["tokens_per_s"] for line in steps if line["step"] not in warm]
    speeds = speeds or [line["tokens_per_s"] for line in steps]
    every = [line["step"] for line in steps]
    is_whole = every == list(range(1, len(every) + 1))
    return Pace(
        tokens_per_s=median(speeds),
        slow=sorted(speeds)[len(speeds) // 10],
        tokens=steps[-1]["tokens"],
        steps=steps[-1]["step"],
        wall_s=_wall_s(run),
        training_s=_training_s(steps) if is_whole else None,
        peak_bytes=max(line["memory_bytes"] for line in steps),
    )


def seed_free(run: Run) -> dict[str, Any]:
    """The settings without folder and seeds: runs that agree in them are repetitions."""
    config = {key: value for key, value in run.config.items() if key not in ("folder", "seed")}
    data = {key: value for key, value in run.config["data"].items() if key != "seed"}
    free = ("evaluation", "checkpoint", "logging")
    return {key: value for key, value in {**config, "data": data}.items() if key not in free}


def _training_s(steps: Sequence[Line]) -> float:
    tokens = [0, *(line["tokens"] for line in steps)]
    fed = [after - before for before, after in pairwise(tokens)]
    return sum(count / line["tokens_per_s"] for count, line in zip(fed, steps, strict=True))


def _wall_s(run: Run) -> float:
    """Between neighbouring lines, but for those that a pause lies between."""
    resumed = {line["time_s"] for line in run.record.resumed}
    lines = [run.record.start, *run.record.resumed, *run.record.lines]
    times = sorted(line["time_s"] for line in lines if "time_s" in line)
    return sum(after - before for before, after in pairwise(times) if after not in resumed)
