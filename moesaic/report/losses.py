"""Loss: while training, held out, merged, on one axis; and what was retained."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from moesaic.report.blocks import Block, Section, section
from moesaic.report.estimate import Estimate
from moesaic.report.figures import Axis, Figure, Mark, Series, intervals, lines
from moesaic.report.routing import changes
from moesaic.report.runs import held_out, is_restricted, steps_of, task_domains
from moesaic.report.sources import Evaluation, Merge, Run, Sources
from moesaic.report.verdict import compared, share, titled
from moesaic.runlog import Line

_SMOOTH = 5
"""Steps, at least, that a smooth curve is the mean of."""
_POINTS = 6_000
"""Of all training curves of a page together."""
_MOST, _FEWEST = 500, 40
"""Points of one curve."""


def loss(sources: Sources) -> Section | None:
    """One chart of every run: training loss, held-out loss of each domain."""
    runs = [run for run in sources.runs if steps_of(run)]
    few = max(_FEWEST, min(_MOST, _POINTS // max(1, len(runs))))
    blocks: list[Block | None] = []
    if len(runs) > 1:
        blocks.append(_all_runs(runs, few))
    blocks += [_of_run(run, place, few, sources) for place, run in enumerate(runs)]
    return section("loss", "Loss", blocks)


def balance(sources: Sources) -> Section | None:
    """How evenly every run used its experts."""
    runs = [run for run in sources.runs if steps_of(run)]
    few = max(_FEWEST, min(_MOST, _POINTS // max(1, len(runs))))
    return section("balance", "Balance", [_balance(run, at, few) for at, run in enumerate(runs)])


def retention(sources: Sources) -> Section | None:
    """What became of what the model knew before."""
    marks = [mark for one in sources.evaluations for mark in _score_changes(one)]
    scores = intervals(
        "retention-points",
        "Change of every score against the base, in points",
        "Right of 0 is better. Whiskers are 95 % intervals of the difference over the same items; "
        "where they reach 0, it cannot be told from chance.",
        marks,
        Axis("points"),
        reference=0.0,
    )
    rises = [mark for one in sources.routings for mark in changes(one)]
    rises += [mark for one in sources.merges for mark in _loss_changes(one)]
    texts = intervals(
        "retention-loss",
        "Change of the held-out loss, by domain",
        "Left of 0 is better. Whiskers are 95 % intervals of the difference over the same tokens; "
        "a point without one was measured once before and once after.",
        rises,
        Axis("rise of the loss, nats per token"),
        reference=0.0,
    )
    return section("retention", "Retention", [scores, texts])


def thinned(xs: Sequence[float], ys: Sequence[float], most: int) -> tuple[list[float], list[float]]:
    """A curve with at most so many points: each the mean of neighbouring ones."""
    if len(xs) <= most:
        return list(xs), list(ys)
    width = -(-len(xs) // most)
    starts = range(0, len(xs), width)
    return (
        [xs[min(start + width, len(xs)) - 1] for start in starts],
        [fmean(ys[start : start + width]) for start in starts],
    )


def smoothed(ys: Sequence[float], over: int) -> list[float]:
    """At each place the mean of the values around it: as many on either side, ``over`` at most."""
    found: list[float] = []
    for at in range(len(ys)):
        side = min(over // 2, at, len(ys) - 1 - at)
        found.append(fmean(ys[at - side : at + side + 1]))
    return found


def _all_runs(runs: Sequence[Run], few: int) -> Figure | None:
    series = [
        Series(run.name, *_training(run, few)[1], colour=place, label=run.name)
        for place, run in enumerate(runs)
    ]
    return lines(
        "loss-runs",
        "Training loss of every run",
        "Mean over neighbouring steps, next token only. Runs on different data do not compare.",
        series,
        Axis("tokens", "~s"),
        Axis("loss, nats per token"),
    )


def _of_run(run: Run, place: int, few: int, sources: Sources) -> Figure | None:
    (raw, mean), held = _training(run, few), held_out(run)
    tokens = {line["step"]: line["tokens"] for line in steps_of(run)}
    series = [
        Series("training, each step", *raw, colour=0, look="faint"),
        Series("training", *mean, colour=0, label="training"),
    ]
    kind = "held out, as trained" if is_restricted(run) else "held out"
    ends = max(tokens.values())
    for colour, (domain, found) in enumerate(held.items(), start=1):
        at = [tokens.get(step, step * ends / max(tokens)) for step, _ in found]
        name, losses = f"{domain}, {kind}", [value for _, value in found]
        label = f"{domain}{' (learned)' if domain in task_domains(run) else ''}"
        series.append(Series(name, at, losses, colour, "points", label))
    colours = {domain: colour for colour, domain in enumerate(held, start=1)}
    whole = _with_all_experts(run, colours, ends, sources)
    restricted = (
        " Held out is measured as trained, among the experts that training held; merged, with all "
        "experts, it differs." * is_restricted(run)
    )
    return lines(
        f"loss-{place + 1}",
        f"Loss of {run.name}",
        f"Next token, without other terms of the objective. Circles: held-out text.{restricted}"
        + " Squares: with all experts, before training and merged, by the analysis or the merge."
        * bool(whole),
        [*series, *whole],
        Axis("tokens", "~s"),
        Axis("loss, nats per token"),
    )


def _with_all_experts(
    run: Run, colours: Mapping[str, int], end: int, sources: Sources
) -> list[Series]:
    """Loss on the run's domains with all experts: of the base, and of what it was merged into."""
    if run.slice is None:
        return []
    found = [*_of_routings(run.slice.base, sources), *_of_merges(run.slice.base, sources)]
    domains: dict[str, dict[str, str]] = (run.config.get("evaluation") or {}).get("domains", {})
    known = {
        name: next((ends for data, ends in found if data == source["path"]), None)
        for name, source in domains.items()
    }
    return [
        Series(f"{name}, all experts", [0, end], ends, colours[name], "solid", f"{name}, merged")
        for name, ends in known.items()
        if ends is not None and name in colours
    ]


def _of_routings(base: str, sources: Sources) -> Iterator[tuple[str, tuple[float, float]]]:
    """Text → loss before and after, of analyses that compare with a base."""
    for one in sources.routings:
        if (one.found.against or {}).get("digest") == base:
            for domain in one.found.domains.values():
                if domain.against is not None and domain.loss is not None:
                    yield domain.source, (domain.against.loss, domain.loss)


def _of_merges(base: str, sources: Sources) -> Iterator[tuple[str, tuple[float, float]]]:
    """The same as merges measured it."""
    for merge in sources.merges:
        if merge.record.base == base:
            for data, one in merge.record.retained.items():
                yield data, (one.before, one.after)


def _balance(run: Run, place: int, few: int) -> Figure | None:
    """How uneven the load of the experts was."""
    steps = [line for line in steps_of(run) if "max_violation_mean" in line]
    series = [
        Series(name, *_curve(steps, key, few), colour=colour, label=name)
        for colour, (name, key) in enumerate(
            (("mean of layers", "max_violation_mean"), ("worst layer", "max_violation_max"))
        )
    ]
    return lines(
        f"balance-{place + 1}",
        f"{run.name}: how much more the busiest expert has than the mean (MaxVio)",
        "0 is even; 1 means twice as many tokens as the mean, among the experts within reach.",
        series,
        Axis("tokens", "~s"),
        Axis("MaxVio", from_zero=True),
    )


Curve = tuple[list[float], list[float]]


def _training(run: Run, few: int) -> tuple[Curve, Curve]:
    """The loss of each step, and a smooth curve."""
    steps = steps_of(run)
    at, values = [line["tokens"] for line in steps], [line["next_token"] for line in steps]
    mean = smoothed(values, max(_SMOOTH, len(values) // 25))
    return thinned(at, values, few), thinned(at, mean, few)


def _curve(steps: Sequence[Line], key: str, few: int) -> Curve:
    return thinned([line["tokens"] for line in steps], [line[key] for line in steps], few)


def _score_changes(evaluation: Evaluation) -> list[Mark]:
    """Differences of those scores that are shares, the first of each task."""
    marks: list[Mark] = []
    for name, task in evaluation.results.tasks.items():
        metric, score = next(iter(task.metrics.items()))
        if task.against and metric in task.against and share(score):
            found = compared(task.against[metric])
            low, high = (None if end is None else 100 * end for end in (found.low, found.high))
            marks.append(
                Mark(titled(name, task), Estimate(100 * found.value, low, high), evaluation.name)
            )
    return marks


def _loss_changes(merge: Merge) -> list[Mark]:
    return [
        Mark(data, Estimate(one.after - one.before), merge.name)
        for data, one in merge.record.retained.items()
    ]
