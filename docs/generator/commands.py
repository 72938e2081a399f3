"""The page of commands, from the commands themselves."""

from importlib import import_module
from inspect import getdoc
from pathlib import Path

from click import Argument, Command, Parameter

from docs.generator.text import prose, table
from moesaic.cli.main import VERBS, load_command


def commands() -> str:
    """The page."""
    lines = [
        "# Commands",
        "",
        "Every command has `--help`. Results go to the standard output, as one JSON object with "
        "`--json`; progress and errors to the standard error. The exit code is 0 for success, 2 "
        "for a request that was wrong, 1 for a run that failed, 130 when it was interrupted.",
    ]
    for verb in VERBS:
        function = getattr(import_module(f"moesaic.cli.{verb}"), verb)
        lines += ["", *_command(verb, load_command(verb), getdoc(function) or "")]
    return "\n".join(lines) + "\n"


def _command(verb: str, command: Command, told: str) -> list[str]:
    arguments = [each for each in command.params if isinstance(each, Argument)]
    options = [each for each in command.params if not isinstance(each, Argument)]
    usage = " ".join([f"moesaic {verb}", *(_metavar(each) for each in arguments), "[OPTION…]"])
    lines = [f"## {verb}", "", "```text", usage, "```", "", prose(told), ""]
    rows = [
        (f"`{_metavar(each)}`" if isinstance(each, Argument) else f"`{_option(each)}`", _told(each))
        for each in (*arguments, *options)
    ]
    return [*lines, table(("argument or option", "meaning"), rows)]


def _metavar(each: Parameter) -> str:
    return getattr(each, "metavar", None) or (each.name or "").upper()


def _option(each: Parameter) -> str:
    metavar = getattr(each, "metavar", None)
    is_flag = getattr(each, "is_flag", False)
    return each.opts[0] if is_flag else f"{each.opts[0]} {metavar or each.type.name.upper()}"


def _told(each: Parameter) -> str:
    told = prose(getattr(each, "help", "") or "")
    shown = each.default if isinstance(each.default, str | int | float | Path) else None
    if shown is None or isinstance(shown, bool):
        return told + (" Required." if each.required and not isinstance(each, Argument) else "")
    return f"{told} Without it: `{shown}`."
