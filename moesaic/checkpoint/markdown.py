"""Markdown of model cards. What others wrote is quoted, never taken as markup."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from moesaic.checkpoint.folder import inside
from moesaic.errors import CheckpointError

README = "README.md"
_MOST_BYTES = 2**20
_LONGEST = 200
"""Characters of what others wrote that are shown."""
_FRONT = re.compile(r"\A---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)


def read_card(folder: Path) -> tuple[dict[str, Any], str]:
    """Front matter and text of a folder's card; nothing of either where there is none.

    Raises:
        CheckpointError: if the card is no text, or its front matter is not YAML.
    """
    if not (folder / README).exists():
        return {}, ""
    path = inside(folder, README)
    if path.stat().st_size > _MOST_BYTES:
        raise CheckpointError(f"{path} is longer than a card can be; remove it")
    try:
        text = path.read_bytes().decode()
        found = _FRONT.match(text.replace("\r\n", "\n"))
        front = yaml.safe_load(found[1]) if found else {}
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())
        raise CheckpointError(f"{path} cannot be read ({told}); correct or remove it") from None
    body = text.replace("\r\n", "\n")[found.end() :] if found else text
    return (front if isinstance(front, dict) else {}), body


def with_front_matter(front: Mapping[str, Any], text: str) -> str:
    """A card of both."""
    dumped = yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True)
    return f"---\n{dumped}---\n\n{text.lstrip()}"


def plain(text: str) -> str:
    """What others wrote, on one line and without meaning in Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", _line(text))


def quoted(text: str) -> str:
    """What others wrote, as code that also stands in a table."""
    line = _line(text)
    ticks, pad = _ticks(line, 1), " " if "`" in line else ""
    return f"{ticks}{pad}{line}{pad}{ticks}".replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fenced(text: str, language: str) -> str:
    """A block of code."""
    ticks = _ticks(text, 3)
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}"


def _line(text: str) -> str:
    """The text on one line, without what is not shown."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:_LONGEST]


def _ticks(text: str, least: int) -> str:
    """More backticks than the text has together anywhere."""
    return "`" * max(least, 1 + max(map(len, re.findall("`+", text)), default=0))
