"""What a page is made of: sections, and the blocks in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from moesaic.planner.table import Table

Finding = Literal["better", "worse", "unclear", "unknown", "mixed", "advice"]
"""Whether something helped: yes, no, it cannot be told, one measurement says nothing of chance,
this yes and that no; or what to do."""


@dataclass(frozen=True, slots=True)
class Prose:
    """A paragraph."""

    text: str


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing that was found out, with how sure it is."""

    finding: Finding
    text: str
    """The sentence to read."""
    detail: str = ""
    """By what it is known."""
    about: str = ""
    """What it is about, in a word or two, where it can be counted with others."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table; its first column is what a row is about."""

    table: Table


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart as a specification: data, and how they are drawn; see `moesaic.report.figures`."""

    id: str
    """Unique on the page; also the name of its CSV file."""
    title: str
    """What it shows, with the unit."""
    caption: str
    """How to read it."""
    kind: str
    """Which of the drawings in ``charts.js``."""
    data: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """What the page's script draws."""
        return {
            "id": self.id,
            "kind": self.kind,
            "title": self.title,
            "data": self.data,
            "options": self.options,
        }


@dataclass(frozen=True, slots=True)
class Reading:
    """Something a model was asked and what it said."""

    title: str
    is_right: bool | None
    """None where an answer is neither right nor wrong."""
    asked: str
    answered: str
    target: str


@dataclass(frozen=True, slots=True)
class Readings:
    """Samples to read, of one task."""

    title: str
    readings: Sequence[Reading]


@dataclass(frozen=True, slots=True)
class Code:
    """Text to be copied exactly, and downloaded as a file."""

    title: str
    text: str
    file: str
    is_open: bool = False


Block = Prose | Claim | Grid | Figure | Readings | Code


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page."""

    id: str
    title: str
    blocks: tuple[Block, ...]

    @property
    def figures(self) -> list[Figure]:
        """Its charts."""
        return [block for block in self.blocks if isinstance(block, Figure)]


def section(id: str, title: str, blocks: Sequence[Block | None]) -> Section | None:
    """A section of the blocks that there are; None where there is none."""
    found = tuple(block for block in blocks if block is not None)
    return Section(id, title, found) if found else None
