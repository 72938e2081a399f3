"""Docstrings as Markdown."""

import re
from collections.abc import Iterable, Sequence

_CODE = re.compile(r"``(.+?)``|`(.+?)`|(?<![\w-])(--[a-z][a-z-]*)", re.DOTALL)
_MARKUP = re.compile(r"([\\*_\[\]<>|$#])")


def prose(text: str) -> str:
    """A docstring's paragraphs: options and what is in backticks are code, all else is plain."""
    pieces: list[str] = []
    end = 0
    for match in _CODE.finditer(text):
        pieces += [_plain(text[end : match.start()]), f"`{match[1] or match[2] or match[3]}`"]
        end = match.end()
    return "".join([*pieces, _plain(text[end:])])


def cell(text: str) -> str:
    """The same on one line, for a table."""
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(prose(text).split()))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    return _MARKUP.sub(r"\\\1", text)
