"""What a merged checkpoint is made of, and where its shards disagree."""

from moesaic.planner.table import Column, Row, Table
from moesaic.report.blocks import Block, Grid, Prose, Section, section
from moesaic.report.figures import Axis, Figure, Series, heat, lines
from moesaic.report.sources import Merge, Sources
from moesaic.report.words import listed, number, percent, plural
from moesaic.units import count

_DIGEST = 12
"""Digits of a digest that name it on the page; all of them are at its end."""


def merging(sources: Sources) -> Section | None:
    """Provenance and conflicts of every merge."""
    blocks: list[Block | None] = []
    for place, merge in enumerate(sources.merges, start=1):
        blocks += [
            Prose(_sentence(merge)),
            Grid(_shards(merge)),
            Prose(_agreement(merge)),
            _pairs(merge, place),
            _layers(merge, place),
        ]
    return section("merge", "Merge", blocks)


def _sentence(merge: Merge) -> str:
    record = merge.record
    method = record.config.get("method", "mean by tokens")
    return (
        f"{merge.name} ({record.digest[:_DIGEST]}) is the base {record.base[:_DIGEST]} with the "
        f"changes of {plural(len(record.shards), 'shard')} in {len(record.parts):,} tensors; every "
        f"other tensor is the base’s, byte for byte. Method: {method}."
    )


def _shards(merge: Merge) -> Table:
    rows = []
    for digest, shard in merge.record.shards.items():
        weights = [parts[digest] for parts in merge.record.parts.values() if digest in parts]
        rows.append(
            Row(
                {
                    "shard": digest[:_DIGEST],
                    "variant": shard.variant,
                    "data": listed(shard.data),
                    "tokens": shard.tokens,
                    "steps": shard.steps,
                    "tensors": len(weights),
                    "weight": sum(weights) / len(weights) if weights else None,
                    "signed": shard.signed_by and shard.signed_by[:_DIGEST],
                }
            )
        )
    columns = (
        Column("shard", "shard", left=True),
        Column("variant", "variant", left=True),
        Column("data", "trained on", left=True),
        Column("tokens", "tokens", count),
        Column("steps", "steps", lambda value: f"{value:,}"),
        Column("tensors", "tensors\nit changed", lambda value: f"{value:,}"),
        Column("weight", "its part\non average", lambda value: percent(value, 1)),
        Column("signed", "signed by", left=True),
    )
    note = (
        "Its part: what a shard’s change was multiplied by; 100 % where it alone trained a tensor. "
        "Without a signature nobody vouches for a shard."
    )
    return Table("shards", "Who had what part", columns, tuple(rows), note)


def _agreement(merge: Merge) -> str:
    overlap = merge.record.overlap
    if not overlap.experts and not overlap.others:
        return "No tensor was trained by two shards, so none are in conflict."
    what = [plural(overlap.experts, "expert")] if overlap.experts else []
    what += [plural(overlap.others, "other tensor")] if overlap.others else []
    verb = "was" if overlap.experts + overlap.others == 1 else "were"
    text = f"{listed(what)} {verb} trained by two shards or more"
    if overlap.cosine is None:
        return f"{text}, at most one of which changed anything there."
    opposed = (
        "" if overlap.opposed is None else f", {percent(overlap.opposed, 0)} of the signs oppose"
    )
    return (
        f"{text}; the cosine between their changes is {number(overlap.cosine, 2)}{opposed}. "
        "1 is agreement, 0 nothing in common, below 0 they undo each other."
    )


def _pairs(merge: Merge, place: int) -> Figure | None:
    """Cosine of the changes of every two shards."""
    digests = list(merge.record.shards)
    if len(digests) < 2:
        return None
    at = {digest: row for row, digest in enumerate(digests)}
    values: list[list[float | None]] = [
        [1.0 if row == column else None for column in at.values()] for row in at.values()
    ]
    for pair in merge.record.overlap.pairs:
        first, second = (at[digest] for digest in pair.shards)
        values[first][second] = values[second][first] = pair.cosine
    names = [digest[:_DIGEST] for digest in digests]
    return heat(
        f"conflicts-{place}",
        f"{merge.name}: do the shards pull the same way?",
        "Cosine between the changes of two shards, over the tensors that both trained.",
        names,
        names,
        values,
        ("", "", "cosine"),
        written=2,
    )


def _layers(merge: Merge, place: int) -> Figure | None:
    found = [
        (int(layer), overlap.cosine)
        for layer, overlap in merge.record.layers.items()
        if layer.isdecimal() and overlap.cosine is not None
    ]
    if len(found) < 2:
        return None
    at, cosines = zip(*found, strict=True)
    return lines(
        f"conflicts-by-layer-{place}",
        f"{merge.name}: agreement by layer",
        "Mean cosine over pairs of shards; above 0 they agree.",
        [Series("cosine", at, cosines, 0), Series("cosine by layer", at, cosines, 0, "points")],
        Axis("layer", "d"),
        Axis("cosine", from_zero=True),
    )
