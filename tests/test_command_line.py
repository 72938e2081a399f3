"""What the command line offers: adding to it is a visible decision."""

import pytest
from click import Argument, Command

from moesaic.cli.main import VERBS, load_command

SURFACE = {
    "demo": "folder --steps",
    "plan": "model --train-experts --frozen-experts --device --json --markdown --set",
    "init": "model folder --dtype --seed",
    "check": "folder --base --verify --json",
    "train": "run_file --dry-run --set --json",
    "score": "folder --data --experts --set --out --dtype --device --json",
    "eval": "folder --tasks --data --out --base --limit --set --json",
    "routing": "folder --data --against --ablate --out --set --json",
    "place": "loads --devices --redundant --nodes --groups --out --json",
    "merge": "base shards --out --method --trust --retain --json --set",
    "undo": "merged --out --json",
    "absorb": "base adapter --out --trust --retain --json --set",
    "quantise": "folder --out --bits --against-data --set --json",
    "export": "folder out --form --pre-tokenizer --json",
    "card": "folder --results --json --set",
    "generate": (
        "folder prompt --max-new-tokens --temperature --seed --schema --memory --set --json"
    ),
    "chat": "folder --temperature --top-p --max-new-tokens --seed --set",
    "serve": "folder --host --port --shard --set --json",
    "launch": "folder --on --gpus --nodes --redundant --run --set --json",
    "report": "paths --out --live --port --json",
}
"""The arguments and options of every command, without ``--help``."""


def offered(command: Command) -> str:
    arguments = [each.name or "" for each in command.params if isinstance(each, Argument)]
    options = [each.opts[0] for each in command.params if not isinstance(each, Argument)]
    return " ".join([*arguments, *options])


def test_the_commands_offer_exactly_this():
    assert {name: offered(load_command(name)) for name in VERBS} == SURFACE


@pytest.mark.parametrize("name", VERBS)
def test_every_command_argument_and_option_says_what_it_is(name: str):
    command = load_command(name)
    assert command.help
    silent = [each.name for each in command.params if not getattr(each, "help", None)]
    assert not silent
