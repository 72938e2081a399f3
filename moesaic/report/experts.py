"""Which experts the data go to, and how much of that a slice holds."""

from collections.abc import Mapping, Sequence
from typing import Any

from moesaic.planner.table import Column, Row, Table
from moesaic.report.blocks import Block, Grid, Prose, Section, section
from moesaic.report.figures import Axis, Figure, Series, heat, lines
from moesaic.report.forms import Coverage, Scores, Selected
from moesaic.report.sources import Run, Sources
from moesaic.report.words import number, percent, signed
from moesaic.runlog import Line
from moesaic.units import count

_EXPLAINED = "Each row is a layer, each column an expert; an even load would be {even} everywhere. "


def experts(sources: Sources) -> Section | None:
    """Scores, selection, coverage and load of every run that has some."""
    blocks: list[Block | None] = []
    for place, run in enumerate(sources.runs, start=1):
        chosen = run.slice.selection if run.slice else None
        blocks += _scored(run.name, f"{place}", run.scores, run.coverage, chosen)
        blocks += _loads(run, place, chosen)
    for place, one in enumerate(sources.scored, start=1):
        blocks += _scored(one.name, f"scored-{place}", one.scores, one.coverage, None)
    return section("experts", "Experts and coverage", blocks)


def _scored(
    name: str,
    place: str,
    scores: Scores | None,
    coverage: Coverage | None,
    chosen: Selected | None,
) -> list[Block | None]:
    if scores is None:
        return []
    blocks: list[Block | None] = [
        _matrix(
            f"experts-{place}",
            f"{name}: share of the choices that fall on each expert, before training",
            f"Scored on {count(scores.tokens)} tokens of the data that is learned.",
            scores.token,
            chosen,
        )
    ]
    if coverage is not None:
        blocks += [Prose(_held(coverage)), _curve(name, place, coverage), Grid(_layers(coverage))]
    return blocks


def _held(coverage: Coverage) -> str:
    error = "" if coverage.gap_error is None else f" ± {number(2 * coverage.gap_error)}"
    whose = "not scored before" if coverage.held_out else "that were scored too"
    return (
        f"Before training, the base makes {percent(coverage.overall.choices, 0)} of its choices "
        f"among the experts held; {percent(coverage.overall.tokens)} of the tokens find all of "
        f"theirs in a layer, {percent(coverage.overall.everywhere)} in every layer. Restricted to "
        f"the experts held its loss is {number(coverage.held_loss)} instead of "
        f"{number(coverage.natural_loss)}: a gap of {signed(coverage.gap)}{error} nats that comes "
        f"from routing alone ({count(coverage.tokens)} tokens {whose})."
    )


def _curve(name: str, place: str, coverage: Coverage) -> Figure | None:
    at = list(range(1, len(coverage.curve) + 1))
    kept = sorted({of_layer.held for of_layer in coverage.layers.values()})
    held = f"{kept[0]}" if len(kept) == 1 else f"{kept[0]} to {kept[-1]}"
    series = [
        Series(label, at, [100 * getattr(one, key) for one in coverage.curve], colour)
        for colour, (label, key) in enumerate(
            (
                ("gate values", "gate"),
                ("choices", "choices"),
                ("tokens, in a layer", "tokens"),
                ("tokens, in all layers", "everywhere"),
            )
        )
    ]
    return lines(
        f"coverage-{place}",
        f"{name}: what the best experts of every layer hold of the natural routing",
        f"The slice holds {held} experts of each layer.",
        series,
        Axis("experts held of each layer, best first"),
        Axis("per cent", from_zero=True),
    )


def _layers(coverage: Coverage) -> Table:
    rows = [
        Row({"layer": str(layer), **of_layer.model_dump()})
        for layer, of_layer in coverage.layers.items()
    ]
    rows.append(Row({"layer": "mean", **coverage.overall.model_dump()}, strong=True))
    columns = (
        Column("layer", "layer", left=True),
        Column("held", "experts held"),
        Column("choices", "of choices", percent),
        Column("gate", "of gate values", percent),
        Column("tokens", "of tokens, all choices", percent),
    )
    return Table("coverage", "What is held, by layer", columns, tuple(rows))


def _loads(run: Run, place: int, chosen: Selected | None) -> list[Block | None]:
    """The load at the beginning and at the end of a run, where it was written down."""
    found = run.record.of("load")
    ends = {id(line): line for line in (*found[:1], *found[-1:])}.values()
    return [
        _matrix(
            f"load-{place}-{line['step']}",
            f"{run.name}: share of the tokens of step {line['step']:,} that each expert received",
            "As trained.",
            _shares(line),
            chosen,
        )
        for line in ends
    ]


def _shares(line: Line) -> dict[int, list[float]]:
    layers: Mapping[str, Sequence[int]] = line["layers"]
    return {
        int(layer): [load / max(1, sum(loads)) for load in loads] for layer, loads in layers.items()
    }


def _matrix(
    id: str,
    title: str,
    caption: str,
    layers: Mapping[int, Sequence[float]],
    chosen: Selected | None,
) -> Figure | None:
    """Layers × experts, in per cent; framed are the experts that are trained."""
    if not layers:
        return None
    wide = max(len(row) for row in layers.values())
    places = list(layers)
    marked = [
        (places.index(layer), expert)
        for layer, ids in (chosen.experts.items() if chosen else ())
        for expert in ids
        if layer in layers and len(ids) < wide
    ]
    framed = "Framed: the experts that are trained. " if marked else ""
    even = f"{percent(1 / wide, 2)}" if wide else ""
    values: list[list[Any]] = [[100 * value for value in row] for row in layers.values()]
    return heat(
        id,
        title,
        _EXPLAINED.format(even=even) + framed + caption,
        [str(layer) for layer in layers],
        [str(expert) for expert in range(wide)],
        values,
        ("layer", "expert", "% of the choices"),
        marked,
    )
