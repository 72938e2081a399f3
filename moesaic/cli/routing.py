"""``moesaic routing``: where the tokens of some domains go, and what the experts are good for."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress


def routing(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint folder.")],
    data: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=DATA",
            help="A domain: a file, a pattern, corpus:NAME, or trace:DIR. Repeat for several.",
        ),
    ],
    against: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Another checkpoint, to see what routing changed."),
    ] = None,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Measure the loss with experts switched off too.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write routing.json and tables here, for the report."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Measure otherwise, as tokens=100000.", metavar="NAME=VALUE"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all numbers as JSON.")] = False,
) -> None:
    """Show where the tokens of some domains go: which experts, how evenly, how differently.

    Every domain is read once. Of a corpus:NAME it is the text held out from training, of files all
    of it. trace:DIR is routing that was recorded, in the form ESFT publishes it; then DIR needs
    only a config.json.

    With --against, also how differently the other checkpoint routes the same tokens, and how much
    worse or better it predicts them. With --ablate, the loss without shared experts, without the
    experts every token prefers, and with more or fewer experts per token.

    Settings that --set changes: tokens (of each domain), seq_len (tokens seen together), hold (disk
    where the model is larger than the memory), dtype, device, resident (a selection or a shard, to
    see what it holds), top, pairs, token_ids, ablation.tokens, ablation.disabled, ablation.chosen.
    """
    from rich.console import Console
    from rich.progress import Progress

    from moesaic.analyse.routing import study_routing
    from moesaic.analyse.sources import parse_sources
    from moesaic.config.analyse import RoutingConfig
    from moesaic.config.load import parse_changes

    given = ["ablation={}"] if ablate else []
    settings = parse_changes(RoutingConfig, [*given, *(changes or [])])
    sources = parse_sources(data)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        on_tokens, on_layer = _shown(bar, settings.tokens * len(sources))
        found = study_routing(folder, sources, settings, against, on_tokens, on_layer)
    if out is not None:
        found.save(out)
    if as_json:
        print(json.dumps(found.values, ensure_ascii=False))
    else:
        _print(found.values)


def _shown(
    bar: "Progress", total: int
) -> "tuple[Callable[[str, int], None], Callable[[int], None]]":
    """What shows progress: tokens first, then the layers whose weights are read."""
    task = bar.add_task("reading", total=total)
    passed: dict[str, int] = {}

    def on_tokens(domain: str, tokens: int) -> None:
        passed[domain] = tokens
        bar.update(task, completed=sum(passed.values()), description=domain)

    def on_layer(layer: int) -> None:
        bar.update(task, completed=total, description=f"weights of layer {layer}")

    return on_tokens, on_layer


def _print(values: dict[str, Any]) -> None:
    """Which domain each expert is for, where a terminal shows colours; then the tables."""
    from rich.console import Console

    from moesaic.analyse.domain_map import domain_map
    from moesaic.analyse.show import shown_tables

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    elif values["specialisation"] is not None:
        console.print(domain_map(values, console.width), no_wrap=True)
        console.print()
    for place, table in enumerate(shown_tables(values)):
        if place:
            console.print()
        console.print(table.to_rich())
