"""Find each side's best setting, then run both in turns: whatever drifts, drifts for both."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.measure.cases import Case, Job, Setting
from benchmarks.measure.machine import Ceiling
from benchmarks.measure.processes import Group, Worker, WorkerError, described
from benchmarks.measure.work import Evidence, difference

_CLOSE = 0.9
"""A setting this close to its side's best might be the best on another day: it is paired too."""
_MOST_PAIRED = 2


class UnequalWorkError(Exception):
    """Two settings computed different things: their times cannot be compared."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure."""

    screening_s: float
    """Seconds of steps for each setting, to find the best."""
    group_s: float
    """Seconds of steps before the other side's turn."""
    rounds: int
    """Turns of each side."""


def compare(
    case: Case,
    folder: str,
    settings: tuple[list[Setting], list[Setting]],
    ceiling: Ceiling,
    effort: Effort,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The ratio of tokens per second, ours over the peer's, each side at its best.

    Args:
        case: what to do.
        folder: checkpoint both sides load.
        settings: ours and the peer's.
        ceiling: what the machine can do.
        effort: how long to measure.
        say: told what is going on.

    Raises:
        UnequalWorkError: if a setting computes something else than the first of ours.
    """
    screened: list[dict[str, Any]] = []
    evidence: Evidence | None = None
    for setting in (*settings[0], *settings[1]):
        found = _screen(Job(case, setting, folder), ceiling, effort, evidence)
        evidence = evidence or found.pop("evidence", None)
        found.pop("evidence", None)
        say(_line(found))
        screened.append(found)
    ours, *_ = _best(screened, settings[0])
    pairs = []
    for peer in _best(screened, settings[1]):
        pairs.append(_pair(Job(case, ours, folder), Job(case, peer, folder), ceiling, effort))
        say(f"  {pairs[-1]['ratio']:.2f} times {peer.name}")
    return {
        "batch": case.batch,
        "length": case.length,
        "tokens_per_step": case.tokens,
        "flops_per_step": case.flops,
        "ceiling": ceiling.as_json(),
        **min(pairs, key=lambda pair: pair["ratio"]),
        "screening": screened,
    }


def _screen(
    job: Job, ceiling: Ceiling, effort: Effort, expected: Evidence | None
) -> dict[str, Any]:
    """Measure one setting alone; one that fails has an error instead of numbers."""
    try:
        with Worker(job) as worker:
            if expected is not None:
                _check(job.setting, worker.evidence, expected)
            found = described(worker, [worker.run(effort.screening_s)], ceiling)
            return {**found, "evidence": worker.evidence}
    except WorkerError as error:
        return {"setting": job.setting.name, "tokens_per_s": 0.0, "error": str(error)}


def _check(setting: Setting, found: Evidence, expected: Evidence) -> None:
    differing = difference(found, expected, is_exact=setting.precision == "float32")
    if differing:
        raise UnequalWorkError(f"{setting.name} does other work than our float32: {differing}")


def _best(screened: list[dict[str, Any]], settings: list[Setting]) -> list[Setting]:
    """The fastest of some settings, and those close to it."""
    speeds = {found["setting"]: found["tokens_per_s"] for found in screened}
    ranked = sorted(settings, key=lambda setting: speeds[setting.name], reverse=True)
    bar = _CLOSE * speeds[ranked[0].name]
    if not bar:
        raise WorkerError(f"no setting of {ranked[0].side} works; see the errors above")
    return [setting for setting in ranked[:_MOST_PAIRED] if speeds[setting.name] >= bar]


def _pair(ours: Job, peer: Job, ceiling: Ceiling, effort: Effort) -> dict[str, Any]:
    """Run both in turns."""
    with Worker(ours) as our_worker, Worker(peer) as their_worker:
        our_groups: list[Group] = []
        their_groups: list[Group] = []
        for _ in range(effort.rounds):
            our_groups.append(our_worker.run(effort.group_s))
            their_groups.append(their_worker.run(effort.group_s))
        ratios = [b.typical / a.typical for a, b in zip(our_groups, their_groups, strict=True)]
        found = {
            "ratio": round(median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in ratios],
            "ours": described(our_worker, our_groups, ceiling),
            "peer": described(their_worker, their_groups, ceiling),
        }
    for name in ("peak_bytes", "peak_over_start_bytes"):
        found[f"ratio_of_{name}"] = round(found["ours"][name] / found["peer"][name], 3)
    return found


def _line(found: dict[str, Any]) -> str:
    """A setting's speed and memory, or why it has none."""
    if "error" in found:
        return f"  {found['setting']:<52} {found['error'][:90]}"
    return (
        f"  {found['setting']:<52} {found['tokens_per_s']:>10,.1f} tok/s"
        f" {found['peak_over_start_bytes'] / 2**20:>8,.0f} MiB"
    )
