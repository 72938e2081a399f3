"""``moesaic train``: pretrain or fine-tune as a run file says, and go on where a run stopped."""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from moesaic.units import count

if TYPE_CHECKING:
    from pathlib import Path

    from moesaic.config.train import TrainConfig
    from moesaic.train.loop import TrainResult


def train(
    run_file: Annotated[str, typer.Argument(metavar="RECIPE.toml", help="The run file.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read the data once, say what is in it, and end.")
    ] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=VALUE", help="Replace a setting; may be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train a model, or with a table [esft] some of its experts, which become a shard.

    The same command goes on with a run that was stopped or killed. With
    --dry-run nothing is trained or written: a table says what each source
    holds, and what the rows of this run cut, drop or pad.
    """
    from moesaic.config.load import read_run_file
    from moesaic.config.train import TrainConfig
    from moesaic.esft.recipe import train_slice
    from moesaic.kernels.allocator import keep_freed_memory
    from moesaic.train.interrupt import stop_on_signal
    from moesaic.train.loop import train
    from moesaic.train.progress import display

    config = read_run_file(TrainConfig, run_file, changes or ())
    if dry_run:
        _print_data(config, as_json)
        return
    keep_freed_memory()
    with stop_on_signal() as stop, display(sys.stderr) as shown:
        if config.esft is None:
            result = train(config, stop=stop, display=shown)
            kind, made = "model", result.folder.model
        else:
            slice_ = train_slice(config, stop, shown)
            kind = "shard" if config.esft.lora is None else "adapter"
            made, result = slice_.shard, slice_.training
    if result.interrupted:
        print(
            f"moesaic: stopped after step {result.step} of {config.steps}, and saved; "
            "give the same command again to go on",
            file=sys.stderr,
        )
        raise typer.Exit(130)
    print(_as_json(result, kind, made) if as_json else _as_text(result, made))


def _print_data(config: "TrainConfig", as_json: bool) -> None:
    """What a pass over all sources holds, with the run's tokenizer, which is made if it must be."""
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from rich.console import Console

    from moesaic.data.describe import describe
    from moesaic.train.folder import RunFolder
    from moesaic.train.setup import prepare_tokenizer

    home = RunFolder(Path(config.folder)).tokenizer
    with TemporaryDirectory() as folder:
        place = home if home.exists() else Path(folder) / "tokenizer"
        report = describe(config.data, prepare_tokenizer(config, place))
    if as_json:
        print(json.dumps(report.to_json()))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    console.print(report.to_table().to_rich())


def _as_text(result: "TrainResult", made: "Path | None") -> str:
    """The last held-out losses, what was read, and where the model or shard is."""
    lines = [
        f"{line['domain']:<12} loss {line['loss']:.4f} | perplexity {line['perplexity']:.2f} | "
        f"{line['bits_per_byte']:.4f} bits per byte"
        for line in result.evaluations
    ]
    where = f"{made} | {result.step} steps | {count(result.tokens)} tokens"
    return "\n".join([*lines, result.data.line(), where])


def _as_json(result: "TrainResult", kind: str, made: "Path | None") -> str:
    return json.dumps(
        {
            kind: str(made),
            "record": str(result.folder.record),
            "steps": result.step,
            "tokens": result.tokens,
            "held_out": list(result.evaluations),
            "data": result.data.to_json(),
        }
    )
