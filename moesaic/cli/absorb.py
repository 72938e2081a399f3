"""``moesaic absorb``: an adapter into the checkpoint it was trained beside."""

import json
from pathlib import Path
from typing import Annotated

import typer


def absorb(
    base: Annotated[
        Path, typer.Argument(metavar="BASE", help="The checkpoint the adapter was trained beside.")
    ],
    adapter: Annotated[
        Path, typer.Argument(metavar="ADAPTER", help="Folder with an adapter_config.json.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to; new or empty.")],
    trust: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="KEY.pub", help="Only if it is signed with this key; may be repeated."
        ),
    ] = None,
    retain: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATA",
            help="Refuse if the loss on this rises: a file, a pattern or corpus:NAME; may be "
            "repeated.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record.")] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=VALUE", help="Replace a setting; may be repeated."),
    ] = None,
) -> None:
    """Add an adapter to the weights of a checkpoint: W + scale · B · A.

    The adapter may be one that moesaic train wrote with a table [esft.lora], or
    plain LoRA of PEFT. What has no adapter keeps its bytes. adapter.json says
    what was merged.

    Settings of --set: keep_undo=true, which keeps the changed tensors of the
    base for moesaic undo; retain.most_rise, nats per token that the loss may
    rise (0.02); retain.tokens, how many to read of each text (65536);
    retain.dtype (float32); retain.device (auto).
    """
    from rich.console import Console
    from rich.progress import Progress

    from moesaic.checkpoint.check import check
    from moesaic.config.load import parse_changes
    from moesaic.config.merge import Conditions
    from moesaic.esft.absorb import merge_adapter

    conditions = parse_changes(Conditions, [*given(trust, retain), *(changes or [])])
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("absorbing", total=len(check(base).stored))
        found = merge_adapter(base, adapter, out, lambda _: bar.advance(task), conditions)
    if as_json:
        print(json.dumps({"folder": str(found.folder), **found.record()}))
        return
    manifest = found.adapter.manifest
    if manifest is not None and manifest.signature is not None:
        print(f"signed with {manifest.signature.key[:12]}")
    for one in found.retained:
        print(one)
    print(f"{out}: {base} with {adapter}\ndigest {found.digest}")


def given(trust: list[Path] | None, retain: list[str] | None) -> list[str]:
    """What --trust and --retain say, as --set would."""
    changes: list[str] = []
    if trust:
        changes.append(f"trusted={json.dumps([str(path) for path in trust], ensure_ascii=False)}")
    if retain:
        changes.append(f"retain.data={json.dumps(retain, ensure_ascii=False)}")
    return changes
