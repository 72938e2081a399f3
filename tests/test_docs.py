"""The documentation is true: its commands run, its files are read, its generated pages complete."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from shutil import copytree

import pytest
from pages import DOCS, ROOT, Block, blocks, pages

from docs.generator import pages as generated_pages
from docs.generator.paper_map import PACKAGE, documented, entries
from docs.generator.settings import groups
from moesaic.cli.main import VERBS, app, load_command
from moesaic.config.card import CardConfig
from moesaic.config.eval import EvalConfig
from moesaic.config.load import parse_changes, read_run_file
from moesaic.config.merge import MergeConfig
from moesaic.config.serve import ServeConfig
from moesaic.config.settings import Settings
from moesaic.config.toml import write_toml
from moesaic.config.train import TrainConfig
from moesaic.notation import AXES
from moesaic.train.loop import train

TOKENIZER = ROOT / "tests/golden/tokenizer"
MODEL = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "intermediate_size": 32,
    "moe_intermediate_size": 32,
}
RUN = {
    "steps": 2,
    "batch": {"rows": 2, "micro_rows": 1},
    "data": {"seq_len": 64},
    "esft": {"score_tokens": 256},
    "evaluation": {"rows": 1},
}
TINY = {
    "score": ["score_tokens=256"],
    "routing": ["tokens=256"],
    "eval": ["limit=2", "max_length=128", "max_new_tokens=4"],
    "quantise": ["tokens=256"],
}
"""Settings that make what is on the pages short: of fresh models, of run files, of commands."""
CHANGED: dict[str, type[Settings]] = {
    "merge": MergeConfig,
    "eval": EvalConfig,
    "card": CardConfig,
    "serve": ServeConfig,
}
"""What ``--set`` changes, of commands that are not run."""
PAGES = [page for page in pages() if page.name != "index.md"]
GENERATED = dict(generated_pages())
ENTRIES = entries()


@pytest.fixture(autouse=True)
def shapes_are_checked() -> None:
    """By the tests of the functions; here whole commands run."""


def short_file(text: str) -> str:
    """A run file with small settings."""
    run = tomllib.loads(text)
    for key, value in RUN.items():
        if not isinstance(value, dict):
            run[key] = value
        elif key in run:
            run[key] |= value
    if isinstance(run["model"], dict):
        run |= {"model": run["model"] | MODEL, "tokenizer": str(TOKENIZER)}
    return write_toml(run)


def short_command(words: list[str]) -> list[str]:
    """A command's arguments, with small settings."""
    tiny = list(TINY.get(words[0], []))
    tiny += ["retain.tokens=256"] if "--retain" in words else []
    tiny += ["ablation.tokens=256"] if "--ablate" in words else []
    added = [word for change in tiny for word in ("--set", change)]
    return [*words, *added, *(["--max-new-tokens", "4"] if words[0] == "generate" else [])]


def run(words: list[str], folder: Path) -> None:
    """Do what a command says; an error fails the test."""
    if words[0] == "moesaic":
        status = app(short_command(words[1:]), prog_name="moesaic", standalone_mode=False)
        assert not status, words
    else:
        subprocess.run(words, cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages call ``base``: a small model with a tokenizer."""
    folder = tmp_path_factory.mktemp("docs")
    text = (ROOT / "moesaic/recipes/demo_base.toml").read_text(encoding="utf-8")
    (folder / "base.toml").write_text(short_file(text), encoding="utf-8")
    train(read_run_file(TrainConfig, folder / "base.toml", [f"folder={folder / 'base'}"]))
    return folder / "base/model"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_what_a_page_says_can_be_done(
    page: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    copytree(base, tmp_path / "base")
    if page.stem == "tutorial":  # which makes one of its own
        (tmp_path / "base").rename(tmp_path / "unused")
    monkeypatch.chdir(tmp_path)
    found = list(blocks(page))
    for block in found:
        if block.file is not None:
            path = tmp_path / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            text = short_file(block.text) if path.suffix == ".toml" else block.text
            path.write_text(text, encoding="utf-8")
    names: dict[str, object] = {}
    for block in (block for block in found if block.is_run):
        for words in block.commands if block.kind == "console" else []:
            run(words, tmp_path)
        if block.kind == "python":
            exec(compile(block.text, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_what_cannot_be_done_here_is_at_least_well_formed(
    page: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    for words in (words for block in blocks(page) if not block.is_run for words in block.commands):
        if words[0] == "moesaic":
            verb, *arguments = words[1:]
            context = load_command(verb).make_context(verb, list(arguments))
            changes = context.params.get("changes") or []
            if verb == "train":
                read_run_file(TrainConfig, ROOT / context.params["run_file"], changes)
            elif verb in CHANGED:
                parse_changes(CHANGED[verb], changes)


def test_every_block_of_a_page_is_one_that_is_checked():
    known = {"console", "python", "toml", "json", "text", "{toctree}"}
    assert {block.kind for page in PAGES for block in blocks(page)} <= known
    files = [block for page in PAGES for block in blocks(page) if block.kind in ("toml", "json")]
    assert all(block.file for block in files)


def test_every_command_has_a_place_on_some_page():
    shown = {words[1] for page in PAGES for block in blocks(page) for words in moesaic(block)}
    assert shown | {"demo"} == set(VERBS)


def moesaic(block: Block) -> list[list[str]]:
    return [words for words in block.commands if words[0] == "moesaic"]


def test_the_page_of_commands_has_every_argument_and_option():
    text = GENERATED["commands.md"]
    for verb in VERBS:
        section = text[text.index(f"## {verb}\n") :].split("\n## ")[0]
        rows = section.count("\n| `")
        assert rows == len(load_command(verb).params)
        options = [each for each in load_command(verb).params if each.opts[0].startswith("--")]
        assert all(f"| `{each.opts[0]}" in section for each in options)


def test_the_page_of_settings_has_every_setting_and_what_it_means():
    text = GENERATED["settings.md"]
    for group in groups():
        section = text[text.index(f"## {group.__name__}\n") :].split("\n## ")[0]
        assert all(f"| `{name}` |" in section for name in group.model_fields)
    assert "| `steps` | integer > 0 | an error | Optimiser steps. |" in text


def test_the_page_of_notation_has_every_letter():
    assert all(
        f"| `{letter}` | {axis} |" in GENERATED["notation.md"] for letter, axis in AXES.items()
    )


def test_the_paper_map_has_every_source_that_the_code_names():
    text = GENERATED["paper-map.md"]
    named = {
        name
        for path in PACKAGE.rglob("*.py")
        for name, docstring in documented(ast.parse(path.read_text(encoding="utf-8")), path.stem)
        if "Source: " in docstring
    }
    mapped = {entry.name.removeprefix("moesaic.") for entry in ENTRIES}
    assert all(
        any(one.endswith(name.partition(".")[2] or name) for one in mapped) for name in named
    )
    numbers = {
        number
        for path in PACKAGE.rglob("*.py")
        for source in re.findall(r"Source: (.+?)\n\s*(?:\n|\"\"\")", path.read_text(), re.DOTALL)
        for number in re.findall(r"\d{4}\.\d{5}", source)
    }
    assert numbers == set(re.findall(r"arxiv\.org/abs/(\d{4}\.\d{5})", text))


@pytest.mark.parametrize(
    ("paper", "place", "name"),
    [
        ("2412.19437", "section 2.2, eq. 21-23", "moesaic.model.mtp.PredictionModule"),
        ("2408.15664", "algorithm 1", "moesaic.balance.bias.bias_step_"),
        ("2401.06066", "table 7", "moesaic.config.presets.DEEPSEEK_MOE_16B"),
        ("2101.03961", "the whole", "moesaic.config.presets.DEEPSEEK_MOE_2B_SWITCH"),
        (None, "the published checkpoints", "moesaic.planner.inventory.tensors"),
    ],
)
def test_the_paper_map_reads_sources_as_they_are_written(paper: str | None, place: str, name: str):
    found = [(entry.paper, entry.place, entry.name) for entry in ENTRIES]
    assert (paper, place, name) in found


def test_every_decision_is_listed():
    listed = (DOCS / "decisions/README.md").read_text()
    assert not [page.name for page in DOCS.glob("decisions/0*.md") if page.name not in listed]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("sphinx") is None, reason="needs moesaic[docs]")
def test_the_site_is_built_without_a_warning(tmp_path: Path):
    words = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*words, "-d", str(tmp_path / "cache"), str(DOCS), str(tmp_path / "site")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/generated/paper-map.html").exists()
