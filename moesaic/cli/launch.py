"""``moesaic launch``: the command with which vLLM or SGLang serves a checkpoint."""

import json
import os
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def launch(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint folder.")],
    on: Annotated[str, typer.Option(metavar="ENGINE", help="What serves it: vllm or sglang.")],
    gpus: Annotated[int, typer.Option(help="GPUs in each machine.")] = 1,
    nodes: Annotated[int, typer.Option(help="Machines.")] = 1,
    redundant: Annotated[
        int, typer.Option(help="Copies of busy experts in every layer, on all GPUs together.")
    ] = 0,
    run: Annotated[
        bool, typer.Option("--run", help="Run it instead of printing, in place of this process.")
    ] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Launch otherwise, as context=8192.", metavar="NAME=VALUE"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all as one JSON object.")] = False,
) -> None:
    """Print the command with which vLLM or SGLang serves the same folder on many GPUs.

    Experts are spread over all GPUs. Inside a machine they also share the heads, so that
    answers come soon; with attention=data they share the sequences instead, so that more
    are cached. Machines have sequences of their own, and each has its command.

    --redundant gives the busiest experts copies. Both engines measure loads while they serve,
    and move experts. With placement=FILE, which `moesaic place --out FILE` made of loads
    measured before, SGLang keeps experts and copies where it says.

    What an engine would compute otherwise is refused, and with device=NAME what does not
    fit. The argument parsers of vLLM 0.32 and SGLang 0.5.23 take these commands. vLLM's build
    for CPUs was run with them, for every family, and gave the log-probabilities of `moesaic`;
    spread over GPUs they have not been run.

    Settings of --set: name, context, attention (tensor or data), device, memory_share,
    host, port, first_address, first_port, machine and placement.
    """
    from moesaic.checkpoint.check import check
    from moesaic.config.launch import LaunchConfig
    from moesaic.config.load import parse_changes
    from moesaic.errors import ConfigError, suggest
    from moesaic.serve.engines import ENGINES, Cluster
    from moesaic.serve.launch import plan_launch

    config = parse_changes(LaunchConfig, changes or [])
    engine = ENGINES.get(on)
    if engine is None:
        known = " or ".join(ENGINES)
        raise ConfigError(f"--on {on} is not an engine{suggest(on, ENGINES)}; give {known}")
    report = check(folder)
    if not report.is_sound:
        raise report.error()
    planned = plan_launch(folder, report.config, engine, Cluster(gpus, nodes, redundant), config)
    if run:
        _replace(planned.commands[config.machine])
    if as_json:
        print(json.dumps({"kind": "launch", "engine": engine, **asdict(planned)}))
        return
    for note in planned.notes:
        print(f"# {note}")
    for machine, command in enumerate(planned.commands):
        if nodes > 1:
            print(f"# on machine {machine}")
        print(shlex.join(command))


def _replace(command: tuple[str, ...]) -> None:
    """Become that command."""
    from moesaic.errors import ConfigError

    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise ConfigError(
            f"{command[0]} could not be started ({error.strerror}); install the engine, or leave "
            "--run out and take the printed command to where it is"
        ) from None
