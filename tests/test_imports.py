"""The public names, and what must not be loaded before it is needed."""

import subprocess
import sys
from pathlib import Path

import pytest

import moesaic

HEAVY = ("torch", "numpy", "transformers", "tokenizers", "pyarrow", "tensorboard", "jinja2")


def loaded_by(code: str, *arguments: str) -> set[str]:
    """The heavy packages in memory after running some code in a new process."""
    report = f"import sys; print('loaded', *(set(sys.modules) & set({HEAVY!r})))"
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}", *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    return set(result.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("name", moesaic.__all__)
def test_a_public_name_is_there(name: str):
    assert getattr(moesaic, name) is not None
    assert name in dir(moesaic)


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'moesaic' has no attribute 'planer'"):
        _ = moesaic.planer


def test_no_part_is_called_like_a_public_name():
    parts = {path.stem for path in Path(moesaic.__file__).parent.iterdir()}
    assert not parts & set(moesaic.__all__)


def test_the_package_loads_nothing_heavy():
    assert loaded_by("import moesaic") == set()


@pytest.mark.parametrize(
    "part", ["moesaic.config.presets", "moesaic.planner.params", "moesaic.runlog"]
)
def test_planning_and_configuration_load_nothing_heavy(part: str):
    assert loaded_by(f"import {part}") == set()


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "deepseek-v2-lite"]])
def test_help_and_plan_load_nothing_heavy(arguments: list[str]):
    code = "from moesaic.cli.main import main\ntry: main()\nexcept SystemExit: pass"
    assert loaded_by(code, *arguments) == set()


def test_the_package_runs_as_a_module():
    result = subprocess.run(
        [sys.executable, "-m", "moesaic", "--version"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert result.stdout == f"moesaic {moesaic.__version__}\n"
