"""What the command line offers: adding to it is a visible decision."""

from collections.abc import Mapping

import pytest
from click import Argument, Command

from moesaic.cli.main import VERBS, load_command

SURFACE: dict[str, str] = {}
"""The arguments and options of every command, without ``--help``."""


def commands() -> Mapping[str, Command]:
    return {name: load_command(name) for name in VERBS}


def offered(command: Command) -> str:
    arguments = [each.name or "" for each in command.params if isinstance(each, Argument)]
    options = [each.opts[0] for each in command.params if not isinstance(each, Argument)]
    return " ".join([*arguments, *options])


def test_the_commands_offer_exactly_this():
    assert {name: offered(command) for name, command in commands().items()} == SURFACE


@pytest.mark.parametrize("name", commands())
def test_every_command_argument_and_option_says_what_it_is(name: str):
    command = commands()[name]
    assert command.help
    for each in command.params:
        assert getattr(each, "help", None), f"{each.name} has no help"
