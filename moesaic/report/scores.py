"""Scores on tasks: a chart and a table of each evaluation."""

from moesaic.planner.table import Column, Row, Table
from moesaic.report.blocks import Block, Grid, Section, section
from moesaic.report.estimate import Estimate
from moesaic.report.figures import Axis, Figure, Mark, intervals
from moesaic.report.forms import Against, Score, TaskResult
from moesaic.report.sources import Evaluation, Sources
from moesaic.report.verdict import compared, share, titled
from moesaic.report.words import listed, number, percent, points, signed


def scores(sources: Sources) -> Section | None:
    """All scores with their intervals."""
    evaluations = sources.judged
    blocks: list[Block | None] = [_chart(sources)]
    blocks += [Grid(_table(one, len(evaluations) > 1)) for one in evaluations]
    return section("scores", "Task scores", blocks)


def _chart(sources: Sources) -> Figure | None:
    """The quoted score of every task that is a share, of a base and all that is held against it."""
    marks = [
        Mark(titled(name, task), _scaled(score), label, colour)
        for colour, (label, one) in enumerate(_named(sources))
        for name, task in one.results.tasks.items()
        for score in [next(iter(task.metrics.values()))]
        if share(score)
    ]
    rows = list(dict.fromkeys(mark.row for mark in marks))
    return intervals(
        "scores",
        "Scores, in per cent of the items",
        "Whiskers are 95 % intervals over items, as if other items of the same kind were drawn. "
        "Two intervals may overlap and the difference still be sure: it is over the same items.",
        sorted(marks, key=lambda mark: rows.index(mark.row)),
        Axis("per cent"),
    )


def _named(sources: Sources) -> list[tuple[str, Evaluation]]:
    """Every evaluation with what it is called, bases first."""
    judged = {id(one) for one in sources.judged}
    bases = [("base", one) for one in sources.evaluations if id(one) not in judged]
    return [*bases, *((one.name, one) for one in sources.judged)]


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
        Column("n", "items"),
        Column("value", "score"),
        Column("interval", "95 % interval"),
        Column("base", "base"),
        Column("difference", "difference"),
        Column("change", "95 % interval"),
        Column("p", "p", "{:.2g}".format),
    ]
    used = [one for one in columns if any(row.values.get(one.key) is not None for row in rows)]
    title = evaluation.name if is_named else ""
    return Table("scores", title, tuple(used), tuple(rows), _note(evaluation))


def _note(evaluation: Evaluation) -> str:
    """What the differences are, where there are some."""
    changes = [
        change
        for task in evaluation.results.tasks.values()
        for change in (task.against or {}).values()
    ]
    tests = sorted({change.test for change in changes if change.test})
    by = f" ({listed(tests)})" if tests else ""
    return (
        "In bold: the score to quote. Differences are to the base on the same items. p: how often "
        f"chance alone would make a difference as large{by}."
        if changes
        else "In bold: the score to quote."
    )


def _row(name: str, task: TaskResult, metric: str, score: Score) -> Row:
    is_share, is_first = share(score), metric == next(iter(task.metrics))
    against = (task.against or {}).get(metric)
    return Row(
        {
            "task": titled(name, task) if is_first else "",
            "metric": metric,
            "n": f"{task.n:,}" if is_first else "",
            "value": _shown(score.value, is_share),
            "interval": _ends(score.low, score.high, is_share),
            **({} if against is None else _difference(against, is_share)),
        },
        strong=is_first,
    )


def _difference(against: Against, is_share: bool) -> dict[str, object]:
    found = compared(against)
    return {
        "base": _shown(against.base, is_share),
        "difference": points(found.value)
        if is_share
        else signed(found.value, _digits(found.value)),
        "change": _ends(found.low, found.high, is_share, is_signed=True),
        "p": against.p,
    }


def _shown(value: float, is_share: bool) -> str:
    return percent(value) if is_share else number(value, _digits(value))


def _digits(value: float) -> int:
    """Decimals that say something of a number of this size."""
    return 4 if abs(value) < 100 else 1 if abs(value) < 10_000 else 0


def _ends(
    low: float | None, high: float | None, is_share: bool, is_signed: bool = False
) -> str | None:
    if low is None or high is None:
        return None
    write, scale = signed if is_signed else number, 100 if is_share else 1
    digits = 1 if is_share else _digits(max(abs(low), abs(high)))
    return " to ".join(write(scale * end, digits) for end in (low, high))
