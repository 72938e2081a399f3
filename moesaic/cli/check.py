"""``moesaic check``: what is in a checkpoint folder, and whether it is sound."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from moesaic.checkpoint.check import Report


def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a checkpoint.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every byte, even where digest.json is current.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare a checkpoint with its config.json; exit with 1 if it is not sound."""
    from moesaic.checkpoint import check as inspect
    from moesaic.checkpoint.digest import digest
    from moesaic.errors import CheckpointError

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
