"""``moesaic plan``: sizes, memory, work and time of a model, without building it."""

from typing import Annotated

import typer


def plan(
    model: Annotated[str, typer.Argument(metavar="PRESET", help="A preset or a folder.")],
) -> None:
    """Print what a model weighs, needs and costs."""
    from moesaic.planner import params

    print(params.plan(model).total)
