"""``moesaic merge``: trained shards into the checkpoint they come from."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesaic.units import count

if TYPE_CHECKING:
    from moesaic.esft.merge import Merge


def merge(
    base: Annotated[
        Path, typer.Argument(metavar="BASE", help="The checkpoint the shards were trained from.")
    ],
    shards: Annotated[
        list[Path], typer.Argument(metavar="SHARD…", help="Folders with a manifest.json.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to; new or empty.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the record: every shard's part of every expert.")
    ] = False,
) -> None:
    """Merge shards: each expert becomes the mean of those that trained it, by tokens.

    What no shard trained keeps its bytes. The order of the shards does not matter.
    """
    from rich.console import Console
    from rich.progress import Progress

    from moesaic.checkpoint.check import check
    from moesaic.esft.merge import merge_shards

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("merging", total=len(check(base).stored))
        merged = merge_shards(base, shards, out, lambda _: bar.advance(task))
    print(json.dumps(_as_json(merged)) if as_json else _as_text(merged))


def _as_json(merged: "Merge") -> dict[str, Any]:
    return {"folder": str(merged.folder), **merged.record()}


def _as_text(merged: "Merge") -> str:
    record = merged.record()
    tokens = count(sum(shard.tokens for shard in merged.shards))
    lines = [
        f"{digest[:12]}  {count(work['tokens'])} tokens | {work['steps']} steps | "
        f"{', '.join(work['data'])}"
        for digest, work in record["shards"].items()
    ]
    shards = "1 shard" if len(merged.shards) == 1 else f"{len(merged.shards)} shards"
    summary = f"{merged.folder}: {shards}, {tokens} tokens | {len(record['parts'])} experts merged"
    return "\n".join([*lines, summary, f"digest {merged.digest}"])
