"""``moesaic``: the app, its commands, and what a mistake looks like on a terminal."""

import errno
import re
import sys
from importlib import import_module
from inspect import getdoc
from typing import Annotated, NoReturn

import typer
from click import ClickException, Command, Context
from typer.core import TyperGroup

import moesaic
from moesaic.cli.messages import messages
from moesaic.errors import MoesaicError, TrainingError, suggest

_OF_FILES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EPIPE)
"""Errors of writing, which do not always name the file."""
_HELP = {"help_option_names": ["-h", "--help"]}

VERBS = {
    "demo": "Pretrain, fine-tune eight experts, merge and compare, in minutes.",
    "plan": "Print what a model weighs, needs and costs.",
    "init": "Write a checkpoint with random weights.",
    "check": "Compare a checkpoint with its config.json.",
    "train": "Train a model, or some of its experts, as a run file says.",
    "score": "Score every expert on some data.",
    "eval": "Score a checkpoint on published tasks, and compare it with a base.",
    "routing": "Show where tokens of some domains go, and what the experts do.",
    "place": "Place experts, and copies of the busiest, on devices.",
    "merge": "Merge shards into the checkpoint they come from.",
    "undo": "Write the base that a checkpoint was merged into.",
    "absorb": "Merge an adapter into the checkpoint it was trained beside.",
    "quantise": "Write a checkpoint in 8 or 4 bits, and show what it loses.",
    "export": "Write a checkpoint as a GGUF file, for llama.cpp.",
    "card": "Write scores and a licence into the card of a checkpoint.",
    "generate": "Write text from a prompt.",
    "chat": "Talk with a model in the terminal.",
    "serve": "Answer requests over HTTP, as the OpenAI API does.",
    "launch": "Print the command with which vLLM or SGLang serves a checkpoint.",
    "report": "Write one page about runs: did it help, by how much, how sure.",
}
"""The commands in the order of ``--help``, one line each. A command is the function of its name in
the file of its name beside this one, which is imported when the command is used."""


class _Commands(TyperGroup):
    """Lists every command without importing one."""

    def resolve_command(
        self, ctx: Context, args: list[str]
    ) -> tuple[str | None, Command | None, list[str]]:
        """The command that was asked for, imported now."""
        name = args[0]
        if name not in VERBS:
            ctx.fail(f"{name!r} is not a command{suggest(name, VERBS) or '; see moesaic --help'}")
        return name, load_command(name), args[1:]


def load_command(name: str) -> Command:
    """A command with its arguments and options; the listed ones have only a name and a line."""
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    function = getattr(import_module(f"moesaic.cli.{name}"), name)
    single.command(name, context_settings=_HELP, help=_flowing(getdoc(function) or ""))(function)
    return typer.main.get_command(single)


def _flowing(told: str) -> str:
    """Paragraphs without line breaks, which would stay where they are in a terminal of any width;
    and no brackets that rich would take for a style."""
    paragraphs = told.replace("[", r"\[").split("\n\n")
    return "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=_HELP,
    help="Plan, train, slice, merge and run DeepSeek-style Mixture-of-Experts models.",
)
for verb, summary in VERBS.items():
    app.command(verb, help=summary)(lambda: None)


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


@messages()
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
    except OSError as error:
        if error.filename is None and error.errno not in _OF_FILES:
            raise
        _stop(f"a file or the output cannot be read or written: {error}", 1)
    except (MemoryError, RuntimeError) as error:
        _stop(_too_little_memory(error), 1)
    else:
        sys.exit(status)


def _too_little_memory(error: Exception) -> str:
    """What to do about memory that torch or Python did not get.

    Raises:
        Exception: this one, if it is another.
    """
    asked = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
    if asked is None and not isinstance(error, MemoryError):
        raise error
    return (
        f"the memory does not suffice{f' for {asked[1]} more' if asked else ''}; ask for less at "
        "once (shorter rows, context or cache_tokens), or hold weights in fewer bits; moesaic plan "
        "says what a model needs"
    )


def _stop(message: str, status: int) -> NoReturn:
    if message:  # there is none where the help was printed instead
        print(f"moesaic: {message}", file=sys.stderr)
    sys.exit(status)
