"""The reference: a page per part of the package, filled from docstrings by autodoc; notation."""

import ast
from pathlib import Path

import moesaic
from docs.generator.text import cell, table
from moesaic.notation import AXES

PACKAGE = Path(moesaic.__file__).parent
_LEFT_OUT = ("cli", "recipes", "child", "native", "__main__")
"""Commands have a page of their own; the rest is not for import."""


def modules() -> dict[str, list[str]]:
    """The modules of every part; single files are the part ``moesaic``."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if not set(parts) & set(_LEFT_OUT):
            names = [part for part in parts if part != "__init__"]
            part = names[1] if len(parts) > 2 else "moesaic"
            found.setdefault(part, []).append(".".join(names))
    return found


def part_page(part: str, names: list[str]) -> str:
    """Every public name of a part."""
    title = "moesaic" if part == "moesaic" else f"moesaic.{part}"
    lines = [f"# {title}", ""]
    for name in names:
        directive = f".. automodule:: {name}\n   :members:\n"
        lines += [f"## {name}", "", "```{eval-rst}", directive, "```", ""]
    return "\n".join(lines)


def overview() -> str:
    """The parts, with what the file of each says it is for."""
    rows = []
    for part, names in modules().items():
        told = _first_line(
            PACKAGE / ("__init__.py" if part == "moesaic" else f"{part}/__init__.py")
        )
        title = "moesaic" if part == "moesaic" else f"moesaic.{part}"
        rows.append((f"[{title}](api/{part}.md)", str(len(names)), cell(told)))
    pages = "\n".join(f"api/{part}" for part in modules())
    return (
        "# Python reference\n\nWritten from docstrings. What is meant to be imported from "
        "outside is what `moesaic` itself offers; the rest is documented for those who read or "
        "change it.\n\n"
        f"{table(('part', 'files', 'what it is'), rows)}\n\n"
        f"```{{toctree}}\n:hidden:\n\n{pages}\n```\n"
    )


def notation() -> str:
    """The letters that tensor names end in."""
    rows = [(f"`{letter}`", meaning) for letter, meaning in AXES.items()]
    return (
        "# Notation\n\nA tensor's name ends in one letter per axis: `x_TD` is tokens by hidden "
        "size. A capital is the whole axis, the lower-case letter the part held here: `E` experts "
        "of the layer, `e` those resident on this device. The tests check every name against the "
        f"shape of its tensor.\n\n{table(('letter', 'axis'), rows)}\n"
    )


def _first_line(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]
