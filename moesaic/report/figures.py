"""Charts as specifications: what ``charts.js`` draws, and nothing of how.

Every kind has one form of data. ``lines``: series of x and y. ``intervals``, ``bars`` and
``tradeoff``: columns of equal length. ``heat``: a matrix. Colours are numbers of the palette; one
thing has one colour on the whole page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

from moesaic.report.blocks import Figure
from moesaic.report.estimate import Estimate

_DIGITS = 6
"""Of a number in a chart."""
COLOURS = 8
"""In the palette; series beyond repeat them."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One side of a chart."""

    label: str
    """With the unit."""
    form: str = ""
    """How ticks are written, in the notation of d3-format."""
    from_zero: bool = False


@dataclass(frozen=True, slots=True)
class Series:
    """A line, or points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int
    look: Literal["line", "faint", "points", "solid", "dashed"] = "line"
    label: str | None = None
    """Written at its end; None writes nothing."""
    error: Sequence[float | None] | None = None
    """Half of the 95 % interval of every point, drawn as whiskers."""

    def to_json(self) -> dict[str, Any]:
        """What is drawn."""
        return {
            "name": self.name,
            "x": list(self.x),
            "y": [short(y) for y in self.y],
            "colour": self.colour % COLOURS,
            "look": self.look,
            "label": self.label,
            "error": self.error and [short(half) for half in self.error],
        }


@dataclass(frozen=True, slots=True)
class Mark:
    """A number with its interval, in a row of its own or beside others."""

    row: str
    found: Estimate
    group: str = ""
    colour: int = 0


def lines(
    id: str, title: str, caption: str, series: Sequence[Series], x: Axis, y: Axis
) -> Figure | None:
    """Lines over a common axis; None where there is nothing to draw."""
    if not any(len(one.x) for one in series):
        return None
    data = {"series": [one.to_json() for one in series]}
    return Figure(id, title, caption, "lines", data, {"x": _axis(x), "y": _axis(y)})


def intervals(
    id: str,
    title: str,
    caption: str,
    marks: Sequence[Mark],
    x: Axis,
    reference: float | None = None,
    joined: bool = False,
) -> Figure | None:
    """Numbers with their intervals, one row each or several groups to a row.

    Args:
        id: unique on the page.
        title: what it shows.
        caption: how to read it.
        marks: the numbers.
        x: their axis.
        reference: where a line stands, as 0 for differences.
        joined: whether the groups of a row are joined by a line, from the first to the last.
    """
    if not marks:
        return None
    data = {
        "columns": {
            "row": [mark.row for mark in marks],
            "group": [mark.group for mark in marks],
            "value": [short(mark.found.value) for mark in marks],
            "low": [short(mark.found.low) for mark in marks],
            "high": [short(mark.found.high) for mark in marks],
            "colour": [mark.colour % COLOURS for mark in marks],
        }
    }
    options = {"x": _axis(x), "reference": reference, "joined": joined}
    return Figure(id, title, caption, "intervals", data, options)


def bars(
    id: str, title: str, caption: str, rows: Sequence[tuple[str, str, float, str]], x: Axis
) -> Figure | None:
    """Horizontal bars from 0, each with its number: row, group, value, the number as text."""
    if not rows:
        return None
    groups = list(dict.fromkeys(group for _, group, _, _ in rows))
    data = {
        "columns": {
            "row": [row for row, _, _, _ in rows],
            "group": [group for _, group, _, _ in rows],
            "value": [short(value) for _, _, value, _ in rows],
            "text": [text for _, _, _, text in rows],
            "colour": [groups.index(group) for _, group, _, _ in rows],
        }
    }
    return Figure(id, title, caption, "bars", data, {"x": _axis(x)})


def tradeoff(
    id: str,
    title: str,
    caption: str,
    means: Mapping[str, tuple[Estimate, Estimate]],
    each: Mapping[str, Sequence[tuple[float, float]]],
    x: Axis,
    y: Axis,
) -> Figure | None:
    """What is gained against what it costs: the mean of each thing, and every one of its runs."""
    if not means:
        return None
    columns: dict[str, list[Any]] = {
        name: [] for name in ("name", "is_mean", "x", "x_low", "x_high", "y", "y_low", "y_high")
    }
    for name, (across, up) in means.items():
        of_mean = (across.value, across.low, across.high, up.value, up.low, up.high)
        _append(columns, name, True, of_mean)
        for at_x, at_y in each[name]:
            _append(columns, name, False, (at_x, None, None, at_y, None, None))
    return Figure(
        id, title, caption, "tradeoff", {"columns": columns}, {"x": _axis(x), "y": _axis(y)}
    )


def heat(
    id: str,
    title: str,
    caption: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    labels: tuple[str, str, str],
    marked: Sequence[tuple[int, int]] = (),
    written: int | None = None,
    form: str = ".2~f",
) -> Figure | None:
    """A matrix by colour.

    Args:
        id: unique on the page.
        title: what it shows.
        caption: how to read it.
        rows: their names.
        columns: their names.
        values: by row.
        labels: of rows, columns and values.
        marked: places (row, column) with a frame.
        written: decimals of numbers written into the cells; None writes none.
        form: how values are written in the legend.
    """
    if not values or not values[0]:
        return None
    data = {
        "matrix": {
            "rows": list(rows),
            "columns": list(columns),
            "values": [[short(value, 3) for value in row] for row in values],
        }
    }
    options = {
        "labels": labels,
        "marked": [list(place) for place in marked],
        "written": written,
        "form": form,
    }
    return Figure(id, title, caption, "heat", data, options)


def short(value: float | None, digits: int = _DIGITS) -> float | None:
    """With few digits; None where it is no number."""
    if value is None or not isfinite(value):
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def _append(columns: dict[str, list[Any]], name: str, mean: bool, values: Sequence[Any]) -> None:
    for column, value in zip(columns, (name, mean, *values), strict=True):
        columns[column].append(short(value) if isinstance(value, float) else value)


def _axis(axis: Axis) -> dict[str, Any]:
    return {"label": axis.label, "form": axis.form, "from_zero": axis.from_zero}
