"""``moesaic init``: a checkpoint with fresh weights, of any size."""

from pathlib import Path
from typing import Annotated

import typer


def init(
    model: Annotated[
        str, typer.Argument(metavar="PRESET", help="A preset, or a folder with a config.json.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to; new or empty.")],
    dtype: Annotated[
        str, typer.Option(help="bfloat16, float16, float32, or float8_e4m3fn for FP8 blocks.")
    ] = "bfloat16",
    seed: Annotated[int, typer.Option(help="The same seed gives the same weights.")] = 0,
) -> None:
    """Write a checkpoint with random weights, one tensor in memory at a time."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    from moesaic.checkpoint.check import check
    from moesaic.checkpoint.fresh import write_fresh
    from moesaic.config.presets import find_model
    from moesaic.planner.inventory import tensors

    name, config = find_model(model)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=sum(spec.size for spec in tensors(config)))
        digest = write_fresh(folder, config, dtype, seed, lambda spec: bar.advance(task, spec.size))
    print(check(folder).text())
    print(f"digest {digest}")
