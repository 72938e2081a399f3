"""Scores on tasks: a chart and a table of each evaluation."""

from collections.abc import Sequence

from moesaic.planner.table import Column, Row, Table
from moesaic.report.blocks import Block, Grid, Section, section
from moesaic.report.estimate import Estimate
from moesaic.report.figures import Axis, Figure, Mark, intervals
from moesaic.report.forms import Against, Score, TaskResult
from moesaic.report.read import Evaluation, Sources
from moesaic.report.verdict import compared, share, titled
from moesaic.report.words import number, percent, points, signed


def scores(sources: Sources) -> Section | None:
    """All scores with their intervals."""
    bases = {str((one.results.base or {}).get("digest")) for one in sources.evaluations}
    evaluations = [
        one for one in sources.evaluations if one.results.model.get("digest") not in bases
    ]
    blocks: list[Block | None] = [_chart(evaluations)]
    blocks += [Grid(_table(one, len(evaluations) > 1)) for one in evaluations]
    return section("scores", "Task scores", blocks)


def _chart(evaluations: Sequence[Evaluation]) -> Figure | None:
    """The quoted score of every task that is a share, all evaluations and their base in a row."""
    marks: list[Mark] = []
    for place, one in enumerate(evaluations):
        for name, task in one.results.tasks.items():
            metric, score = next(iter(task.metrics.items()))
            if not share(score):
                continue
            if task.against and metric in task.against:
                marks.append(
                    Mark(titled(name, task), Estimate(100 * task.against[metric].base), "base", 0)
                )
            marks.append(Mark(titled(name, task), _scaled(score), one.name, place + 1))
    shown: dict[tuple[str, str, float], Mark] = {}
    for mark in marks:
        shown.setdefault((mark.row, mark.group, mark.found.value), mark)
    return intervals(
        "scores",
        "Scores, in per cent of the items",
        "Whiskers are 95 % intervals over items, as if other items of the same kind were drawn. "
        "Two intervals may overlap and the difference still be sure: the difference is over the "
        "same items.",
        list(shown.values()),
        Axis("per cent"),
    )


def _scaled(score: Score) -> Estimate:
    low, high = (None if end is None else 100 * end for end in (score.low, score.high))
    return Estimate(100 * score.value, low, high)


def _table(evaluation: Evaluation, is_named: bool) -> Table:
    rows = [
        _row(name, task, metric, score)
        for name, task in evaluation.results.tasks.items()
        for metric, score in task.metrics.items()
    ]
    columns = [
        Column("task", "task", left=True),
        Column("metric", "metric", left=True),
        Column("n", "items", lambda value: f"{value:,}"),
        Column("value", "score"),
        Column("interval", "95 % interval"),
        Column("base", "base"),
        Column("difference", "difference"),
        Column("change", "95 % interval"),
        Column("p", "p", "{:.2g}".format),
        Column("test", "test", left=True),
    ]
    used = [one for one in columns if any(row.values.get(one.key) is not None for row in rows)]
    note = (
        "Differences are to the base on the same items. p: how often chance alone would make a "
        "difference as large."
        if any(row.values.get("difference") for row in rows)
        else ""
    )
    return Table("scores", evaluation.name if is_named else "", tuple(used), tuple(rows), note)


def _row(name: str, task: TaskResult, metric: str, score: Score) -> Row:
    is_share = share(score)
    against = (task.against or {}).get(metric)
    return Row(
        {
            "task": titled(name, task),
            "metric": metric,
            "n": task.n,
            "value": _shown(score.value, is_share),
            "interval": _ends(score.low, score.high, is_share),
            **({} if against is None else _difference(against, is_share)),
        },
        strong=metric == next(iter(task.metrics)),
    )


def _difference(against: Against, is_share: bool) -> dict[str, object]:
    found = compared(against)
    return {
        "base": _shown(against.base, is_share),
        "difference": points(found.value) if is_share else signed(found.value),
        "change": _ends(found.low, found.high, is_share, is_signed=True),
        "p": against.p,
        "test": against.test,
    }


def _shown(value: float, is_share: bool) -> str:
    return percent(value) if is_share else number(value)


def _ends(
    low: float | None, high: float | None, is_share: bool, is_signed: bool = False
) -> str | None:
    if low is None or high is None:
        return None
    write = signed if is_signed else number
    ends = [write(100 * end, 1) if is_share else write(end, 4) for end in (low, high)]
    return " to ".join(ends)
