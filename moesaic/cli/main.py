"""``moesaic``: the app, its commands, and what a mistake looks like on a terminal."""

import sys
from importlib import import_module
from typing import Annotated, NoReturn

import typer
from click import ClickException

import moesaic
from moesaic.errors import MoesaicError, TrainingError

VERBS = ("plan", "init", "check")
"""The commands in the order of ``--help``. Each is the function of that name in the file of that
name beside this one; heavy imports belong inside the function."""

app = typer.Typer(
    no_args_is_help=True,
    suggest_commands=False,  # click suggests too
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Plan, train, slice, merge and run DeepSeek-style Mixture-of-Experts models.",
)
for verb in VERBS:
    app.command(verb)(getattr(import_module(f"moesaic.cli.{verb}"), verb))


def _print_version(asked: bool) -> None:
    if asked:
        print(f"moesaic {moesaic.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line.

    Exits with 0 for success, 2 for a request that was wrong, 1 for a run that failed, 130 when
    interrupted.
    """
    try:
        status = app(prog_name="moesaic", standalone_mode=False)
    except ClickException as error:
        _stop(error.format_message(), error.exit_code)
    except MoesaicError as error:
        _stop(str(error), 1 if isinstance(error, TrainingError) else 2)
    else:
        sys.exit(status)


def _stop(message: str, status: int) -> NoReturn:
    if message:  # there is none where the help was printed instead
        print(f"moesaic: {message}", file=sys.stderr)
    sys.exit(status)
