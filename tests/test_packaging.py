"""What is installed: ranges in pyproject.toml, exact versions in constraints.txt."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import moesaic

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ASKED = [
    Requirement(text)
    for texts in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for text in texts
]
PINNED = {
    canonicalize_name(pin.name): Version(next(iter(pin.specifier)).version)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
    for pin in [Requirement(line)]
}
FLOWER_1_41 = {
    "click": ">=8,<9",
    "grpcio": ">=1.70,<2",
    "numpy": ">=1.26,<3",
    "packaging": ">=24,<26",
    "protobuf": ">=5.28,<7",
    "pyyaml": ">=6.0.2,<7",
    "rich": ">=14,<15",
    "typer": ">=0.13,<0.21",
}
"""What the federated engine asks for of the packages that we install too."""


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_a_dependency_has_a_lower_and_an_upper_bound(asked: Requirement):
    bounds = {part.operator for part in asked.specifier}
    assert canonicalize_name(asked.name) == "moesaic" or bounds == {">=", "<"}


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_a_dependency_is_pinned_inside_its_bounds(asked: Requirement):
    if asked.name != moesaic.__name__:
        assert asked.specifier.contains(PINNED[canonicalize_name(asked.name)])


@pytest.mark.parametrize("name", FLOWER_1_41)
def test_the_federated_engine_installs_beside_what_is_pinned(name: str):
    assert SpecifierSet(FLOWER_1_41[name]).contains(PINNED[canonicalize_name(name)])


@pytest.mark.parametrize("asked", [a for a in ASKED if a.name in FLOWER_1_41], ids=str)
def test_the_federated_engine_fits_our_bounds(asked: Requirement):
    wanted = asked.specifier & SpecifierSet(FLOWER_1_41[asked.name])
    assert wanted.contains(PINNED[canonicalize_name(asked.name)])
