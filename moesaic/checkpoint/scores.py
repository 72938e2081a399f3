"""Scores and later fields in the card of a checkpoint; all else in it stays."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.checkpoint.atomic import new_file
from moesaic.checkpoint.card import LICENSE, Made, fresh_card
from moesaic.checkpoint.digest import digest
from moesaic.checkpoint.markdown import README, quoted, read_card, table, with_front_matter
from moesaic.config.card import CardConfig
from moesaic.config.published import read_config


@dataclass(frozen=True, slots=True)
class Score:
    """One number of an evaluation, with its 95 % interval where there is one."""

    task: str
    metric: str
    n: int
    """Items."""
    value: float
    low: float | None
    high: float | None
    difference: float | None = None
    """From the base, on the same items."""
    p: float | None = None


def update_card(folder: Path | str, asked: CardConfig, scores: Sequence[Score]) -> Path:
    """Write fields and scores into a folder's card, and make one where there is none.

    Args:
        folder: a checkpoint.
        asked: fields; those not given stay as they are. A licence replaces all that was said of
            one in the front matter.
        scores: take the place of those the card had; with none, these stay.

    Returns:
        The card.

    Raises:
        CheckpointError: if the checkpoint or its card cannot be read, or the disk is full.
    """
    folder = Path(folder)
    model, own = read_config(folder), digest(folder)
    front, text = read_card(folder)
    if not text:
        made = Made(how="of which no record says how it was made", model=model)
        front, text = fresh_card(made, asked, folder.resolve().name, own)
    if asked.license is not None:
        front = {key: value for key, value in front.items() if key not in LICENSE}
    front |= asked.front_matter()
    written = with_scores(front, text, scores) if scores else with_front_matter(front, text)
    with new_file(folder / README) as file:
        file.write(written.encode())
    return folder / README


def with_scores(front: Mapping[str, Any], text: str, scores: Sequence[Score]) -> str:
    """A card with these scores, in the place of those it had."""
    section = "## Scores\n\n" + _score_table(scores)
    found = re.search(r"^## Scores *\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    place = found or re.search(r"^(?=## Use *$)|\Z", text, re.MULTILINE)
    assert place is not None  # the end of a text is always found
    before, after = text[: place.start()].rstrip(), text[place.end() :].lstrip()
    body = "\n\n".join(part for part in (before, section, after) if part)
    index = [{"name": _heading(text), "results": [_result(score) for score in scores]}]
    return with_front_matter({**front, "model-index": index}, body.rstrip() + "\n")


def _score_table(scores: Sequence[Score]) -> str:
    compared = any(score.difference is not None for score in scores)
    head = ["task", "metric", "items", "score", "95 % interval"]
    rows = [
        [
            quoted(score.task),
            quoted(score.metric),
            str(score.n),
            f"{score.value:.4g}",
            ""
            if score.low is None or score.high is None
            else f"{score.low:.4g} to {score.high:.4g}",
            *([_change(score)] if compared else []),
        ]
        for score in scores
    ]
    return table([*head, *["against the base"] * compared], rows)


def _change(score: Score) -> str:
    if score.difference is None:
        return ""
    return f"{score.difference:+.4g}" + ("" if score.p is None else f" (p = {score.p:.2g})")


def _heading(text: str) -> str:
    found = re.search(r"^# +(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else "model"


def _result(score: Score) -> dict[str, Any]:
    """A score as hubs read it."""
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": score.task, "type": score.task},
        "metrics": [{"name": score.metric, "type": score.metric, "value": score.value}],
    }
