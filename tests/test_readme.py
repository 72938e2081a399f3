"""What the README says about the package is true."""

import re
from pathlib import Path

import moesaic
from moesaic.cli.main import VERBS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGE = Path(moesaic.__file__).parent


def test_the_readme_names_every_part_of_the_package():
    table = README[README.index("| part |") :].split("\n\n")[0]
    named = {name for row in table.splitlines()[2:] for name in _code(row.split("|")[1])}
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert named == (folders | modules) - {"recipes"}


def test_every_command_the_readme_gives_exists():
    given = set(re.findall(r"\bmoesaic ([a-z]+)\b", " ".join(re.findall(r"`+[^`]+`+", README))))
    assert given
    assert given <= set(VERBS)


def test_every_file_the_readme_links_or_names_exists():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    paths = [name for name in _code(README) if re.fullmatch(r"moesaic/[\w/]+(\.\w+)?/?", name)]
    missing = [path for path in (*links, *paths) if not (ROOT / path).exists()]
    assert not missing


def _code(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)
