"""``moesaic check``: what is in a folder of weights, and whether it is sound."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesaic.errors import CheckpointError, RequestError, ShardError

if TYPE_CHECKING:
    from moesaic.checkpoint.check import Report


def check(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A checkpoint, a shard or an adapter.")
    ],
    base: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The checkpoint a shard or an adapter should be of."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every byte, even where digest.json is current.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a folder holds; exit with 1 if it is not sound.

    A checkpoint is compared with its config.json. Of a shard or an adapter
    every byte is read and compared with its manifest, and the signature is
    verified if there is one; with --base, names and shapes too.
    """
    from moesaic.esft.examine import is_trained

    if is_trained(folder):
        _check_trained(folder, base, as_json)
    elif base is not None:
        raise RequestError(f"{folder} is a checkpoint, which has no --base; leave that out")
    else:
        _check_checkpoint(folder, verify, as_json)


def _check_trained(folder: Path, base: Path | None, as_json: bool) -> None:
    from moesaic.esft.examine import examine

    try:
        found = examine(folder, base)
    except (CheckpointError, ShardError) as error:
        problem = {"folder": str(folder), "sound": False, "problem": str(error)}
        print(json.dumps(problem) if as_json else f"{folder}: not sound\n{error}")
        raise typer.Exit(1) from None
    print(json.dumps(found.to_json(), indent=2) if as_json else found.text())


def _check_checkpoint(folder: Path, verify: bool, as_json: bool) -> None:
    from moesaic.checkpoint import check as inspect
    from moesaic.checkpoint.digest import digest

    report, root = inspect.check(folder), None
    if report.is_sound:
        try:
            root = digest(folder, verify)
        except CheckpointError as error:
            report = report.with_damage(folder.name, str(error))
    if as_json:
        print(json.dumps(_as_json(report, root), indent=2))
    else:
        print(report.text())
        if root:
            print(f"digest {root}")
    if not report.is_sound:
        raise typer.Exit(1)


def _as_json(report: "Report", root: str | None) -> dict[str, Any]:
    return {
        "folder": str(report.folder),
        "sound": report.is_sound,
        "digest": root,
        "model_type": report.config.model_type,
        "parameters": report.parameters,
        "tensors": len(report.stored),
        "bytes": report.n_bytes,
        "types": report.dtypes(),
        "files": [path.name for path in report.files],
        "problems": [
            {"kind": problem.kind, "name": problem.name, "text": problem.text}
            for problem in report.problems
        ],
        "warnings": list(report.warnings),
        "ignored": list(report.ignored),
    }
