"""What the loss is with experts switched off: one checkpoint, or two side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moesaic.report.blocks import Block
from moesaic.report.estimate import Estimate, around
from moesaic.report.figures import Axis, Figure, Mark, Series, intervals, lines
from moesaic.report.routed import Ablated, Point, Routed
from moesaic.report.words import listed, number


def ablation(found: Routed, title: str, place: int) -> list[Block | None]:
    """The loss with some experts switched off, or another number of them."""
    if found.ablation is None:
        return []
    here, there = found.ablation.model, found.ablation.against
    names = [_called(found.model), _called(found.against or {})]
    both = [(names[0], here), *([(names[1], there)] if there else [])]
    disabled = lines(
        f"routing-disabled-{place}",
        f"{title}loss with the experts switched off that every token prefers",
        "The steeper, the less can other experts stand in. Whiskers: 95 % intervals over batches."
        + _redundancy(both),
        [_rises(name, of.disabled, "ratio", colour) for colour, (name, of) in enumerate(both)],
        Axis("share of the routed experts passed over", ".0%"),
        Axis("rise of the loss, nats per token", from_zero=True),
    )
    chosen = lines(
        f"routing-chosen-{place}",
        f"{title}loss with another number of experts per token",
        "As trained is where the rise is 0.",
        [_rises(name, of.chosen, "chosen", colour) for colour, (name, of) in enumerate(both)],
        Axis("experts per token", "d"),
        Axis("rise of the loss, nats per token"),
    )
    return [disabled, chosen, _shared(both, title, place)]


def _called(model: Mapping[str, Any]) -> str:
    """A checkpoint by its folder, or by the run that the folder is in."""
    folder = Path(str(model.get("folder") or "the other checkpoint"))
    return folder.parent.name if folder.name == "model" and folder.parent.name else folder.name


def _redundancy(both: Sequence[tuple[str, Ablated]]) -> str:
    known = [f"{name} {number(of.redundancy)}" for name, of in both if of.redundancy is not None]
    return f" Mean rise over the ratios: {listed(known)} nats." if known else ""


def _shared(both: Sequence[tuple[str, Ablated]], title: str, place: int) -> Figure | None:
    marks = [
        Mark(f"off, {point.chosen} routed per token", _rise(point), name, colour)
        for colour, (name, of) in enumerate(both)
        for point in of.shared
    ]
    return intervals(
        f"routing-shared-{place}",
        f"{title}loss with the shared experts switched off",
        "With as many routed experts more the work is the same.",
        marks,
        Axis("rise of the loss, nats per token"),
        reference=0.0,
    )


def _rises(name: str, points: Sequence[Point], across: str, colour: int) -> Series:
    errors = [_rise(one).half for one in points]
    return Series(
        name,
        [getattr(one, across) for one in points],
        [one.rise for one in points],
        colour,
        "points",
        name,
        errors,
    )


def _rise(point: Point) -> Estimate:
    return around(point.rise, point.rise_stderr)
