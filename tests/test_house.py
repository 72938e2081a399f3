"""What the house style asks of every file and every setting."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from moesaic.config.settings import Settings

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "moesaic").rglob("*.py"))
PYTHON = [
    path
    for part in ("moesaic", "tests", "benchmarks")
    for path in sorted((ROOT / part).rglob("*.py"))
]

FORBIDDEN = {
    r"\b(TODO|FIXME|XXX|HACK)\b": "finish it",
    r"\bNotImplementedError\b": "leave out what is not written",
    r"\bpickle\b|\btorch\.load\(|\btorch\.save\(": "use safetensors or JSON",
    r"(?<![.\w])(eval|exec)\(": "parse it",
    r"\bos\.environ\b|\bgetenv\(": "pass it in",
    r"register_\w*hook\(": "pass a trace",
    r"\btorch\.manual_seed\(|\brandom\.seed\(": "take a generator",
    r"class \w*(Manager|Utils|Base)\b": "name what it is",
    r"# type: ignore|# pyright: ignore(?!\[)": "name the rule",
}


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PYTHON, ids=names)
def test_a_file_is_one_idea_of_at_most_300_lines(path: Path):
    lines_in_file = path.read_text().count("\n")
    assert lines_in_file <= 300


@pytest.mark.parametrize("path", PACKAGE, ids=names)
def test_a_function_has_at_most_60_lines(path: Path):
    long = [node.name for node in functions(path) if lines(node) > 60]
    assert not long


def test_half_of_all_functions_have_under_10_lines():
    lengths = sorted(lines(node) for path in PACKAGE for node in functions(path))
    assert lengths[len(lengths) // 2] < 10


@pytest.mark.parametrize("path", PACKAGE, ids=names)
def test_a_file_says_what_it_is_for(path: Path):
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", PACKAGE, ids=names)
def test_a_file_has_none_of_the_forbidden_words(path: Path):
    text = path.read_text()
    found = {match[0]: fix for word, fix in FORBIDDEN.items() if (match := re.search(word, text))}
    assert not found


def test_no_file_is_called_utils():
    assert not [path for path in PYTHON if re.search("util|helper|common|misc", path.stem)]


def groups_of_settings() -> list[type[Settings]]:
    for path in sorted((ROOT / "moesaic" / "config").glob("*.py")):
        importlib.import_module(f"moesaic.config.{path.stem}")
    return [kind for kind in Settings.__subclasses__() if kind.__module__.startswith("moesaic.")]


@pytest.mark.parametrize("group", groups_of_settings(), ids=lambda group: group.__name__)
def test_every_setting_is_read_and_says_what_it_means(group: type[Settings]):
    code = "\n".join(path.read_text() for path in PACKAGE if path.stem != "presets")
    for name, field in group.model_fields.items():
        is_tag = get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1
        is_read = re.search(rf"\.{name}\b|\"{name}\"", code) is not None
        assert is_tag or is_read, f"no code reads {name}"
        assert is_tag or field.description, f"{name} has no description"


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its signature and docstring."""
    first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
    return (node.end_lineno or first.lineno) - first.lineno + 1
