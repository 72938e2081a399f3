"""The pages of the documentation that are written from the code."""

from collections.abc import Iterator
from pathlib import Path

from docs.generator.commands import commands
from docs.generator.paper_map import paper_map
from docs.generator.reference import modules, notation, overview, part_page
from docs.generator.settings import settings


def pages() -> Iterator[tuple[str, str]]:
    """Name and text of each."""
    yield "commands.md", commands()
    yield "settings.md", settings()
    yield "paper-map.md", paper_map()
    yield "notation.md", notation()
    yield "reference.md", overview()
    for part, names in modules().items():
        yield f"api/{part}.md", part_page(part, names)


def write(folder: Path) -> None:
    """Write those that changed."""
    for name, text in pages():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
