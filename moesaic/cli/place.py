"""``moesaic place``: experts and copies of the busiest on devices, from a measured load."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def place(
    loads: Annotated[
        Path, typer.Argument(metavar="LOADS", help="A routing.json, or loads by layer in JSON.")
    ],
    devices: Annotated[int, typer.Option(help="Devices that share the experts of a layer.")],
    redundant: Annotated[int, typer.Option(help="Slots for copies, on all devices together.")] = 0,
    nodes: Annotated[int, typer.Option(help="Machines the devices are in.")] = 1,
    groups: Annotated[
        int, typer.Option(help="The model's n_group; a group stays in one machine if it can.")
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the placement as SGLang reads it; a .json."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all as one JSON object.")] = False,
) -> None:
    """Say which device holds which experts when the busiest experts have copies.

    LOADS is what `moesaic routing DIR --data NAME=DATA --out RESULT` wrote as
    RESULT/routing.json, or a JSON list with a list of loads for every layer of
    the model, empty for one without experts.

    Balancedness is the mean load of the devices over that of the busiest: 1 is even. It is of the
    loads given; other text loads experts otherwise.

    The file of --out is for SGLang: --init-expert-location FILE with --ep-num-redundant-experts
    as --redundant. vLLM reads no placement: it measures loads itself, with --enable-eplb.
    """
    from moesaic.balance.placement import Devices, expert_locations, read_loads
    from moesaic.balance.placement import place as place_layer
    from moesaic.checkpoint.atomic import new_file

    where, measured = Devices(devices, redundant, nodes, groups), read_loads(loads)
    placed = {layer: place_layer(values, where) for layer, values in measured.items()}
    n_experts = len(next(iter(measured.values())))
    locations = expert_locations(placed, n_experts)
    rows = [_row(layer, measured[layer], slots, devices) for layer, slots in placed.items()]
    if out is not None:
        with new_file(out) as file:
            file.write(json.dumps(locations).encode() + b"\n")
    if as_json:
        policy = "hierarchical" if where.keeps_groups else "global"
        print(json.dumps({"kind": "placement", "policy": policy, "layers": rows, **locations}))
    else:
        _print(rows, devices)


def _row(layer: int, loads: list[float], slots: tuple[int, ...], n_devices: int) -> dict[str, Any]:
    from moesaic.balance.placement import balancedness, without_copies

    plain = without_copies(len(loads), n_devices)
    before = None if plain is None else balancedness(loads, plain, n_devices)
    after = balancedness(loads, slots, n_devices)
    return {"layer": layer, "in_order": before, "placed": after, "slots": list(slots)}


def _print(rows: list[dict[str, Any]], n_devices: int) -> None:
    """A line per layer, then the experts of its devices."""
    from rich.console import Console
    from rich.table import Table

    table = Table("layer", "in order", "placed", "experts by device", box=None)
    for row in rows:
        slots, room = row["slots"], len(row["slots"]) // n_devices
        parts = [slots[first : first + room] for first in range(0, len(slots), room)]
        before = "–" if row["in_order"] is None else f"{row['in_order']:.3f}"
        shown = " | ".join(" ".join(map(str, part)) for part in parts)
        table.add_row(str(row["layer"]), before, f"{row['placed']:.3f}", shown)
    console = Console(highlight=False)
    Console(highlight=False, width=console.width if console.is_terminal else 120).print(table)
