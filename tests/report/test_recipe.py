"""The page holds what makes a run again, exactly."""

import tomllib
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.config.load import read_run_file
from moesaic.config.toml import write_toml
from moesaic.config.train import TrainConfig
from moesaic.report.blocks import Code, Grid
from moesaic.report.recipe import recipe, run_file
from moesaic.report.sources import Sources

KEYS = st.text(min_size=1, max_size=8)
PLAIN = st.one_of(st.booleans(), st.integers(-(2**62), 2**62), st.text(max_size=12))
PLAIN = PLAIN | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40)
@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_settings_written_as_toml_read_back_the_same(table: dict[str, Any]):
    assert tomllib.loads(write_toml(table)) == table


def test_what_is_absent_is_left_out():
    assert write_toml({"a": None, "b": {"c": None, "d": 1}}) == "[b]\nd = 1\n"


def test_a_run_file_on_the_page_makes_the_same_run(sources: Sources, tmp_path: Path):
    for run in sources.runs:
        (tmp_path / "run.toml").write_text(run_file(run.config), encoding="utf-8")
        again = read_run_file(TrainConfig, tmp_path / "run.toml")
        assert again.model_dump(mode="json") == run.config


def test_settings_of_another_version_are_written_as_they_were_recorded():
    assert (
        run_file({"folder": "x", "charm": {"level": 3}}) == 'folder = "x"\n\n[charm]\nlevel = 3\n'
    )


def test_digests_versions_and_hardware_are_there(sources: Sources):
    found = recipe(sources)
    assert found is not None
    tables = {block.table.key: block.table for block in found.blocks if isinstance(block, Grid)}
    digests = [row.values["digest"] for row in tables["digests"].rows]
    assert sources.merges[0].record.digest in digests
    assert sources.merges[0].record.base in digests
    told = [row.values["what"] for row in tables["machines"].rows]
    assert {"cpu", "moesaic", "torch"} <= set(told)
    files = [block.file for block in found.blocks if isinstance(block, Code)]
    assert files[:2] == ["one.toml", "two.toml"]
