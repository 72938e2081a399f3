"""``moesaic plan``: sizes, memory, work and time of a model, without building it."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from moesaic.planner.sheet import Sheet


def plan(
    model: Annotated[
        str,
        typer.Argument(metavar="PRESET", help="A preset, a checkpoint folder, or a config.json."),
    ],
    train_experts: Annotated[
        int | None,
        typer.Option(help="Routed experts trained per layer; 8 if the model has experts."),
    ] = None,
    frozen_experts: Annotated[
        int, typer.Option(help="Routed experts per layer kept beside them, not trained.")
    ] = 0,
    device: Annotated[
        str | None, typer.Option(help="Look at this device only: h100-sxm, rtx-4090, …")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, numbers unrounded.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change an assumption, as sequence=2048.", metavar="NAME=VALUE"),
    ] = None,
) -> None:
    """Print what a model weighs, needs and costs: whole, and the slice that one device trains.

    Presets: tiny, small and mid, each also with -v1, -v2 or -v3; deepseek-moe-2b, also with -dense,
    -hash, -switch or -gshard; deepseek-moe-16b; deepseek-v2-lite; deepseek-v2; deepseek-v3.

    Assumptions that --set changes: precision, states, gradients, offload, hold_linears,
    park_embedding, lora.rank, lora.targets, batch, passes, sequence, recompute, sequences, context,
    mfu, tokens_per_second, tokens, round_s.
    """
    from moesaic.config.load import parse_changes
    from moesaic.config.presets import find_model
    from moesaic.errors import RequestError
    from moesaic.planner.assumptions import Assumptions
    from moesaic.planner.devices import get_device
    from moesaic.planner.params import params
    from moesaic.planner.sheet import make_sheet

    if json and markdown:
        raise RequestError("--json and --markdown contradict each other; give one of them")
    name, config = find_model(model)
    if train_experts is None and config.experts:
        train_experts = min(max(8, config.num_experts_per_tok or 0), config.experts)
    sheet = make_sheet(
        params(config, train_experts, frozen_experts, name),
        parse_changes(Assumptions, changes or ()),
        None if device is None else get_device(device),
    )
    if json:
        _print_json(sheet)
    elif markdown:
        print(sheet.to_markdown())
    else:
        _print_tables(sheet)


def _print_json(sheet: "Sheet") -> None:
    import json

    print(json.dumps(sheet.to_json(), indent=2))


def _print_tables(sheet: "Sheet") -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    console.print(sheet.headline, style="bold")
    for line in sheet.details:
        console.print(line)
    for table in sheet.tables:
        console.print()
        console.print(table.to_rich(), soft_wrap=False)
