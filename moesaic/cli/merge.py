"""``moesaic merge``: trained shards into the checkpoint they come from."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesaic.cli.absorb import given
from moesaic.units import count

if TYPE_CHECKING:
    from moesaic.config.merge import MergeConfig
    from moesaic.esft.merge import Merge
    from moesaic.planner.table import Table


def merge(
    base: Annotated[
        Path, typer.Argument(metavar="BASE", help="The checkpoint the shards were trained from.")
    ],
    shards: Annotated[
        list[Path], typer.Argument(metavar="SHARD…", help="Folders with a manifest.json.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to; new or empty.")],
    method: Annotated[
        str, typer.Option(help="mean, sum or ties: what an expert becomes that several trained.")
    ] = "mean",
    trust: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="KEY.pub", help="Merge only shards signed with this key; may be repeated."
        ),
    ] = None,
    retain: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATA",
            help="Refuse the merge if the loss on this rises: a file, a pattern or corpus:NAME; "
            "may be repeated.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record.")] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=VALUE", help="Replace a setting; may be repeated."),
    ] = None,
) -> None:
    """Merge shards: an expert becomes the mean, by tokens, of those that trained it.

    What no shard trained keeps its bytes, and the order of the shards does not
    matter. merge.json says what part every shard has in every tensor, and how
    far those that trained the same disagree.

    Settings of --set: scale, what sum and ties multiply changes by (1);
    density, the share of changes that ties keeps (0.2); only, a JSON file with
    the experts to take of the shards, as moesaic score --out writes it;
    keep_undo=true, which keeps the changed tensors of the base for moesaic
    undo; retain.most_rise, nats per token that the loss may rise (0.02);
    retain.tokens, how many to read of each text (65536); retain.dtype
    (float32); retain.device (auto).
    """
    from rich.console import Console
    from rich.progress import Progress

    from moesaic.checkpoint.check import check
    from moesaic.esft.merge import merge_shards

    config = _config(method, [*given(trust, retain), *(changes or [])])
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("merging", total=len(check(base).stored))
        merged = merge_shards(base, shards, out, lambda _: bar.advance(task), config)
    if as_json:
        print(json.dumps({"folder": str(merged.folder), **merged.record()}))
    else:
        _print(merged)


def _config(method: str, changes: list[str]) -> "MergeConfig":
    """The settings; what --set says comes last."""
    from moesaic.config.load import parse_changes
    from moesaic.config.merge import MergeConfig

    said = f"method={json.dumps(method, ensure_ascii=False)}"
    return parse_changes(MergeConfig, [said, *changes])


def _print(merged: "Merge") -> None:
    """Shards, where they overlap, what was retained, and the sum of it."""
    from rich.console import Console

    from moesaic.esft.conflicts import sentence

    for shard in merged.shards:
        work, signature = shard.manifest.work, shard.manifest.signature
        signed = f" | signed with {signature.key[:12]}" if signature else ""
        print(
            f"{shard.manifest.digest[:12]}  {count(work.tokens)} tokens | {work.steps} steps | "
            f"{', '.join(work.data)}{signed}"
        )
    overlap = merged.conflicts.overall()
    if len(merged.shards) > 1:
        print(sentence(len(merged.shards), overlap))
    if overlap.pairs:
        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=120)
        console.print(_table(merged).to_rich())
    for one in merged.retained:
        print(one)
    print(_summary(merged))


def _summary(merged: "Merge") -> str:
    tokens = count(sum(shard.tokens for shard in merged.shards))
    experts = {name.rsplit(".", 2)[0] for name in merged.parts if ".mlp.experts." in name}
    shards = "1 shard" if len(merged.shards) == 1 else f"{len(merged.shards)} shards"
    return (
        f"{merged.folder}: {shards}, {tokens} tokens | {len(experts)} experts merged\n"
        f"digest {merged.digest}"
    )


def _table(merged: "Merge") -> "Table":
    from moesaic.planner.table import Column, Row, Table

    layers = merged.conflicts.by_layer()
    overlaps: dict[Any, Any] = {"none" if i is None else i: one for i, one in layers.items()}
    overlaps["all"] = merged.conflicts.overall()
    rows = [
        Row(
            {
                "layer": layer,
                "experts": overlap.experts,
                "others": overlap.others,
                "cosine": overlap.cosine,
                "lowest": min(overlap.cosines, default=None),
                "opposed": overlap.opposed,
                "norm": overlap.norm,
            },
            strong=layer == "all",
        )
        for layer, overlap in overlaps.items()
    ]
    return Table(
        key="overlap",
        title="where shards trained the same",
        columns=(
            Column("layer", "layer"),
            Column("experts", "experts"),
            Column("others", "other\ntensors"),
            Column("cosine", "cosine,\nmean", "{:.2f}".format),
            Column("lowest", "cosine,\nlowest", "{:.2f}".format),
            Column("opposed", "opposed\nsigns", "{:.1%}".format),
            Column("norm", "length of\na change", "{:.3g}".format),
        ),
        rows=tuple(rows),
        note="cosine, signs and lengths: of the changes of every two shards to what both trained",
    )
