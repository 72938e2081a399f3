"""What the house style asks of every file and every setting."""

import ast
import importlib
import re
from functools import cache
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


def test_a_file_is_one_idea_of_at_most_300_lines():
    assert not {name(path) for path in PYTHON if path.read_text().count("\n") > 300}


def test_a_function_has_at_most_60_lines():
    assert not {node.name for path in PACKAGE for node in functions(path) if length(node) > 60}


def test_half_of_all_functions_have_under_10_lines():
    lengths = sorted(length(node) for path in PACKAGE for node in functions(path))
    assert lengths[len(lengths) // 2] < 10


def test_a_file_says_what_it_is_for():
    assert not {name(path) for path in PACKAGE if not ast.get_docstring(parsed(path))}


@pytest.mark.parametrize("word", FORBIDDEN)
def test_a_forbidden_word_is_nowhere(word: str):
    found = {name(path) for path in PACKAGE if re.search(word, path.read_text())}
    assert not found, FORBIDDEN[word]


def test_no_file_is_called_utils():
    assert not {name(path) for path in PYTHON if re.search("util|helper|common|misc", path.stem)}


def groups_of_settings() -> list[type[Settings]]:
    for path in sorted((ROOT / "moesaic" / "config").glob("*.py")):
        importlib.import_module(f"moesaic.config.{path.stem}")
    return [kind for kind in Settings.__subclasses__() if kind.__module__.startswith("moesaic.")]


@pytest.mark.parametrize("group", groups_of_settings(), ids=lambda group: group.__name__)
def test_every_setting_is_read_and_says_what_it_means(group: type[Settings]):
    code = "\n".join(path.read_text() for path in PACKAGE if path.stem != "presets")
    for setting, field in group.model_fields.items():
        is_tag = get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1
        is_read = re.search(rf"\.{setting}\b|\"{setting}\"", code) is not None
        assert is_tag or is_read, f"no code reads {setting}"
        assert is_tag or field.description, f"{setting} has no description"


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    nodes = ast.walk(parsed(path))
    return [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its signature and docstring."""
    first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
    return (node.end_lineno or first.lineno) - first.lineno + 1
