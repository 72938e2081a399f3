"""What runs read, and what befell them."""

from moesaic.planner.table import Column, Row, Table
from moesaic.report.blocks import Claim, Grid, Prose, Section, section
from moesaic.report.recorded import RecordedReport
from moesaic.report.sources import Run, Sources
from moesaic.report.words import percent
from moesaic.units import count


def data(sources: Sources) -> Section | None:
    """What every run read, and events that a reader must know of."""
    rows = [row for run in sources.runs for row in _rows(run)]
    events = [Prose(f"{run.name}: {event}.") for run in sources.runs for event in _events(run)]
    return section("data", "Data", [Grid(_table(rows)) if rows else None, *events])


def stops(sources: Sources) -> list[Claim]:
    """Runs that ended because something went wrong, for the verdict."""
    return [
        Claim("worse", f"{run.name} stopped after step {line['step']}: {line['problem']}.")
        for run in sources.runs
        for line in run.record.of("stop")[-1:]
        if run.record.lines[-1] is line
    ]


def _rows(run: Run) -> list[Row]:
    reports = run.record.of("data")
    if not reports:
        return []
    report = RecordedReport.model_validate(reports[-1])
    return [
        Row(
            {
                "run": run.name if place == 0 else "",
                "path": one.path,
                "documents": one.documents,
                "tokens": one.tokens,
                "learned": one.learned,
                "left_out": one.left_out or None,
                "cut": one.split + one.truncated or None,
                "padding": report.padding_share if place == 0 else None,
            }
        )
        for place, one in enumerate(report.sources)
    ]


def _table(rows: list[Row]) -> Table:
    columns = (
        Column("run", "run", left=True),
        Column("path", "text", left=True),
        Column("documents", "documents", lambda value: f"{value:,}"),
        Column("tokens", "tokens", count),
        Column("learned", "of them\nlearned", count),
        Column("left_out", "tokens\nleft out", count),
        Column("cut", "documents\ncut", lambda value: f"{value:,}"),
        Column("padding", "padding,\nof the run", percent),
    )
    return Table("data", "What was read", columns, tuple(rows))


def _events(run: Run) -> list[str]:
    """In the order in which they happened."""
    told: list[str] = [f"taken up again after step {line['step']}" for line in run.record.resumed]
    for line in run.record.lines:
        at = f"step {line.get('step')}"
        if line["kind"] == "skip":
            told.append(f"{at} was left out, {line.get('problem')}")
        elif line["kind"] == "stop":
            told.append(f"stopped after {at}, {line.get('problem')}")
        elif line["kind"] == "end of data":
            told.append(f"the data ended after {at} of {line.get('steps')}")
        elif line["kind"] == "left out":
            told.append(f"{line.get('writer')} was left out from {at} on, {line.get('problem')}")
    return told
