"""The pages of the documentation as what a reader does with them: files to save, commands to give.

A fenced block with a ``:caption:`` is a file of that name. A block ``console`` holds commands after
``$``, one ``python`` a program. A line ``% not run: why`` before a block says that it cannot be run
here.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
WRITTEN = ("decisions", "generated", "generator")
"""Folders of docs/ without instructions."""
_FENCE = re.compile(
    r"(?P<before>^%[^\n]*\n)?^```(?P<info>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    kind: str
    """``console``, ``python``, or what a file is written in."""
    text: str
    file: str | None
    """The name to save it under."""
    is_run: bool

    @property
    def commands(self) -> list[list[str]]:
        """Its commands, in words."""
        joined = self.text.replace("\\\n", " ")
        return [shlex.split(line[2:]) for line in joined.splitlines() if line.startswith("$ ")]


def pages() -> list[Path]:
    """Every page with instructions."""
    found = sorted(DOCS.rglob("*.md"))
    return [page for page in found if page.relative_to(DOCS).parts[0] not in WRITTEN]


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, in order."""
    for match in _FENCE.finditer(page.read_text(encoding="utf-8")):
        is_run = not (match["before"] or "").startswith("% not run: ")
        yield _block(page, match["info"].strip(), match["body"], is_run)


def _block(page: Path, info: str, body: str, is_run: bool) -> Block:
    options = dict(re.findall(r"^:(\w+): *(.+)$\n?", body, re.MULTILINE))
    text = re.sub(r"^:\w+:.*\n", "", body, flags=re.MULTILINE)
    kind, _, rest = info.partition(" ")
    if kind == "{literalinclude}":
        included = (page.parent / rest).resolve().read_text(encoding="utf-8")
        return Block(options.get("language", ""), included, options.get("caption"), is_run)
    if kind == "{code-block}":
        return Block(rest, text, options.get("caption"), is_run)
    return Block(kind, text, None, is_run)
