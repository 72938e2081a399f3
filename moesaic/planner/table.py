"""One kind of table for terminal, Markdown and JSON: raw values in, text made per column."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group

ABSENT = "–"


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its key in JSON, its heading, and how a value is written."""

    key: str
    heading: str
    """May have two lines."""
    show: Callable[[Any], str] = str
    left: bool = False

    def text(self, row: "Row") -> str:
        """The cell as text; a dash where the row has no such value."""
        value = row.values.get(self.key)
        return ABSENT if value is None else self.show(value)


@dataclass(frozen=True, slots=True)
class Row:
    """Values by column key."""

    values: Mapping[str, Any]
    strong: bool = False
    """Whether it is a total."""


@dataclass(frozen=True, slots=True)
class Table:
    """A titled table with the conventions its numbers follow."""

    key: str
    """Its name in JSON."""
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    note: str = ""

    def to_json(self) -> list[dict[str, Any]]:
        """One object per row, values as they are."""
        keys = [column.key for column in self.columns]
        return [{key: row.values.get(key) for key in keys} for row in self.rows]

    def to_markdown(self) -> str:
        """A Markdown table under its title, totals in bold, the note below."""
        lines = [
            [column.heading.replace("\n", " ") for column in self.columns],
            ["---" if column.left else "---:" for column in self.columns],
        ]
        for row in self.rows:
            mark = "**" if row.strong else ""
            cells = (column.text(row) for column in self.columns)
            lines.append([cell if cell == ABSENT else f"{mark}{cell}{mark}" for cell in cells])
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        note = "".join(f"\n{line}  " for line in self.note.splitlines())
        return f"### {self.title}\n\n{body}\n{note}\n"

    def to_rich(self) -> "Group":
        """For a terminal: title, table, note."""
        from rich import box
        from rich.console import Group
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="")
        for column in self.columns:
            justify = "left" if column.left else "right"
            table.add_column(column.heading, justify=justify, vertical="bottom", no_wrap=True)
        for row in self.rows:
            cells = (column.text(row) for column in self.columns)
            table.add_row(*cells, style="bold" if row.strong else None)
        note = [Text(self.note, style="dim")] if self.note else []
        return Group(Text(self.title, style="bold cyan"), table, *note)
