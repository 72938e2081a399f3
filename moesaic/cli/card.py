"""``moesaic card``: scores, licence and other fields into a checkpoint's README.md."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moesaic.checkpoint.scores import Score


def card(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint folder.")],
    results: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="The results.json of an evaluation of this very checkpoint; may be repeated.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A field; may be repeated."),
    ] = None,
) -> None:
    """Write scores and fields into the model card of a checkpoint, its README.md.

    train, merge and absorb write a card of their own: what went in, the recipe,
    the digests. This adds what is known later. Results of another checkpoint are
    refused, by its digest; scores that the card had give way to the new ones,
    and all else in the text stays as it is.

    Fields of --set: license (mit, apache-2.0, other, …), license_name and
    license_link for other; base_model and datasets, where they are published;
    language; title, for a folder that has no card yet.
    """
    from moesaic.checkpoint.scores import update_card
    from moesaic.config.card import CardConfig
    from moesaic.config.load import parse_changes

    asked = parse_changes(CardConfig, changes or [])
    scores = [score for path in results or [] for score in _scores(path, folder)]
    written = update_card(folder, asked, scores)
    if as_json:
        found = {"card": str(written), "scores": len(scores), "fields": asked.front_matter()}
        print(json.dumps(found))
    else:
        fields = ", ".join(asked.front_matter()) or "none"
        print(f"{written} | {len(scores)} scores | fields given: {fields}")


def _scores(path: Path, folder: Path) -> "Iterator[Score]":
    """Every metric of an evaluation of the checkpoint in a folder."""
    from pydantic import ValidationError

    from moesaic.checkpoint.digest import digest
    from moesaic.checkpoint.header import read_json
    from moesaic.checkpoint.scores import Score
    from moesaic.errors import CheckpointError, DataError
    from moesaic.report.forms import Evaluated

    try:
        found, own = Evaluated.model_validate(read_json(path)), digest(folder)
    except (OSError, ValidationError) as error:
        raise DataError(
            f"{path} is not the result of an evaluation ({str(error).splitlines()[0]}); give the "
            "results.json that moesaic eval wrote"
        ) from None
    other = str(found.model.get("digest"))
    if other != own:
        raise CheckpointError(
            f"{path} is of a checkpoint with the digest {other[:12]}, {folder} has {own[:12]}; "
            "evaluate this one"
        )
    for task, result in found.tasks.items():
        for metric, score in result.metrics.items():
            against = (result.against or {}).get(metric)
            change = (None, None) if against is None else (against.difference, against.p)
            yield Score(task, metric, result.n, score.value, score.low, score.high, *change)
