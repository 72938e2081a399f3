"""How to make it again: run files, digests, versions, hardware; and what is not on the page."""

from collections.abc import Mapping
from json import dumps
from typing import Any

from moesaic.config.toml import write_toml
from moesaic.config.train import TrainConfig
from moesaic.errors import MoesaicError
from moesaic.planner.table import Column, Row, Table
from moesaic.report.blocks import Block, Code, Grid, Prose, Section, section
from moesaic.report.sources import Run, Sources
from moesaic.report.words import listed
from moesaic.units import gb

_SETTINGS_SHOWN = 4_000
"""Characters of settings of an evaluation or a merge that are worth a block of their own."""


def recipe(sources: Sources) -> Section | None:
    """Everything needed to repeat what the page shows."""
    blocks: list[Block | None] = [_run_file(run) for run in sources.runs]
    blocks += [
        _settings(one.name, one.results.settings, "evaluation") for one in sources.evaluations
    ]
    blocks += [_settings(one.name, one.record.config, "merge") for one in sources.merges]
    blocks.append(_digests(sources))
    blocks.append(_machines(sources))
    return section("recipe", "Exact recipe", blocks)


def not_shown(sources: Sources) -> Section | None:
    """What was found and has no place on the page, with the reason."""
    return section("not-shown", "Not shown", [Prose(reason) for reason in sources.not_shown])


def run_file(config: Mapping[str, Any]) -> str:
    """A run file that makes the same run again: every setting that differs from its default."""
    try:
        parsed = TrainConfig.parse(config)
    except MoesaicError:
        return write_toml(config)  # of another version of moesaic: as it was recorded
    return write_toml(parsed.model_dump(mode="json", exclude_defaults=True))


def _run_file(run: Run) -> Code:
    file = f"{run.name.replace('/', '-').strip('.-') or 'run'}.toml"
    title = f"{run.name}: moesaic train {file}"
    return Code(title, run_file(run.config), file)


def _settings(name: str, settings: Mapping[str, Any], what: str) -> Code | None:
    if not settings:
        return None
    text = dumps(settings, indent=2, ensure_ascii=False, default=str)
    file = f"{name.replace('/', '-').strip('.-') or what}-{what}.json"
    return Code(f"{name}: settings of the {what}", text[:_SETTINGS_SHOWN], file)


def _digests(sources: Sources) -> Grid | None:
    rows = [Row({"what": what, "digest": digest}) for what, digest in _named_digests(sources)]
    if not rows:
        return None
    columns = (Column("what", "what", left=True), Column("digest", "sha256", left=True))
    return Grid(Table("digests", "Digests", columns, tuple(rows)))


def _named_digests(sources: Sources) -> list[tuple[str, str]]:
    found = [(f"{run.name}: base", run.slice.base) for run in sources.runs if run.slice]
    for merge in sources.merges:
        record = merge.record
        found += [(f"{merge.name}: base", record.base), (f"{merge.name}: merged", record.digest)]
        for digest, shard in record.shards.items():
            found += [(f"{merge.name}: shard", digest), ("its rows, as fed", shard.fed)]
    for one in sources.evaluations:
        digest = one.results.model.get("digest")
        found += [(f"{one.name}: model", str(digest))] if digest else []
    return found


def _machines(sources: Sources) -> Grid | None:
    """Versions and hardware; results that agree in them share a column."""
    columns: dict[str, list[str]] = {}
    described = [
        *(
            (one.name, one.record.start["versions"], one.record.start["hardware"])
            for one in sources.runs
        ),
        *((one.name, one.results.versions, one.results.hardware) for one in sources.evaluations),
        *((one.name, one.found.versions, one.found.hardware) for one in sources.routings),
        *((one.name, one.found.versions, one.found.hardware) for one in sources.studies),
    ]
    for name, versions, hardware in described:
        values = {
            str(key): gb(value) if key == "memory_bytes" else str(value)
            for key, value in {**hardware, **versions}.items()
            if value is not None
        }
        columns.setdefault(dumps(values), []).append(name)
    if not columns:
        return None
    return Grid(_machine_table(columns))


def _machine_table(columns: Mapping[str, list[str]]) -> Table:
    import json

    found = [json.loads(values) for values in columns]
    keys = list(dict.fromkeys(key for values in found for key in values))
    rows = [
        Row(
            {
                "what": key.replace("_bytes", ""),
                **{str(at): one.get(key) for at, one in enumerate(found)},
            }
        )
        for key in keys
    ]
    headings = [Column("what", "", left=True)]
    headings += [
        Column(str(at), listed(names), left=True) for at, names in enumerate(columns.values())
    ]
    return Table("machines", "Versions and hardware", tuple(headings), tuple(rows))
