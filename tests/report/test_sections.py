"""Every section says in words and numbers what was found, and where that comes from."""

import json
import shutil
from pathlib import Path

import pytest
from report.conftest import HOSTILE

from moesaic.report.blocks import Claim, Figure, Grid, Prose, Readings, Section
from moesaic.report.cost import throughput, wall_clock
from moesaic.report.data import data
from moesaic.report.experts import experts
from moesaic.report.losses import retention
from moesaic.report.merging import merging
from moesaic.report.read import read_sources
from moesaic.report.routed import Compared
from moesaic.report.routing import rise, routing
from moesaic.report.runs import base_of, is_over, pace, task_domains
from moesaic.report.samples import samples
from moesaic.report.scores import scores
from moesaic.report.sources import Sources
from moesaic.report.verdict import verdict


def told(section: Section | None) -> str:
    assert section is not None
    return "\n".join(block.text for block in section.blocks if isinstance(block, Prose))


def figures(section: Section | None) -> dict[str, Figure]:
    assert section is not None
    return {figure.id: figure for figure in section.figures}


def test_provenance_names_every_shard_with_its_part(sources: Sources):
    found = merging(sources)
    assert found is not None
    [table] = [block.table for block in found.blocks if isinstance(block, Grid)]
    assert len(table.rows) == 2
    shards = sources.merges[0].record.shards
    assert [row.values["shard"] for row in table.rows] == [digest[:12] for digest in shards]
    assert all(0 < row.values["weight"] <= 1 for row in table.rows)


def test_conflicts_are_told_and_drawn_where_two_shards_trained_the_same(sources: Sources):
    found = merging(sources)
    assert "trained by two shards or more; the cosine between their changes is" in told(found)
    matrix = figures(found)["conflicts-1"].data["matrix"]
    assert matrix["values"][0][0] == 1
    assert matrix["values"][0][1] == matrix["values"][1][0]


def test_experts_that_are_trained_are_framed(sources: Sources):
    run = sources.runs[0]
    assert run.slice is not None
    framed = figures(experts(sources))["experts-1"].options["marked"]
    layers = list(run.scores.token) if run.scores else []
    chosen = run.slice.selection.experts
    assert sorted(framed) == sorted(
        [layers.index(layer), expert] for layer, ids in chosen.items() for expert in ids
    )


def test_the_load_is_shown_at_the_beginning_and_at_the_end(sources: Sources):
    found = figures(experts(sources))
    assert {"load-1-4", "load-1-8"} <= set(found)
    for row in found["load-1-8"].data["matrix"]["values"]:
        assert abs(sum(row) - 100) < 0.5


def test_what_is_held_before_training_is_said_with_its_cost(sources: Sources):
    assert "Before training, the base makes" in told(experts(sources))
    assert "nats that comes from routing alone" in told(experts(sources))


def test_the_interval_of_a_change_is_students_over_pairs_of_batches():
    compared = {"loss": 2.0, "rise": -0.5, "rise_stderr": 0.1}
    few = rise(Compared.model_validate({**compared, "batches": 3}))
    assert (few.low, few.high) == pytest.approx((-0.5 - 0.4303, -0.5 + 0.4303))
    many = rise(Compared.model_validate(compared))  # as files had it before they told how many
    assert many.half == pytest.approx(0.196)
    assert rise(Compared.model_validate({**compared, "rise_stderr": None})).half is None


def test_a_model_whose_experts_a_hash_chooses_has_no_router_to_show(
    sources: Sources, tmp_path: Path
):
    [found] = sources.routings
    values = json.loads((found.folder / "routing.json").read_text())
    values["weights"]["router"] = None
    (tmp_path / "routing.json").write_text(json.dumps(values))
    section = routing(read_sources([tmp_path]))
    assert section is not None
    [alike] = [one for one in section.figures if one.id == "routing-alike-1"]
    assert "router" not in json.dumps(alike.data)


def test_every_part_of_a_routing_analysis_has_a_chart(sources: Sources):
    kinds = {name.removesuffix("-1") for name in figures(routing(sources))}
    assert kinds == {
        *("routing-load", "routing-domains", "routing-overlap", "routing-specialisation"),
        *("routing-balance", "routing-together", "routing-drift", "routing-moved"),
        *("routing-alike", "routing-disabled", "routing-chosen", "routing-shared"),
    }


def test_what_was_not_measured_is_said(sources: Sources):
    assert "Not measured: coverage, " in told(routing(sources))


def test_retention_has_points_of_scores_and_nats_of_texts(sources: Sources):
    found = figures(retention(sources))
    assert found["retention-points"].data["columns"]["row"] == ["arc_easy"]
    assert found["retention-points"].options["reference"] == 0.0
    rows = found["retention-loss"].data["columns"]
    assert rows["row"][:2] == ["lines", HOSTILE]
    assert rows["low"][0] < rows["value"][0] < rows["high"][0]
    assert rows["low"][2] is None  # what the merge measured, once


def test_scores_are_shown_beside_their_base(sources: Sources):
    found = scores(sources)
    columns = figures(found)["scores"].data["columns"]
    assert list(zip(columns["row"], columns["group"], strict=True)) == [
        ("arc_easy", "base"),
        ("arc_easy", "eval"),
    ]
    assert found is not None
    [table] = [block.table for block in found.blocks if isinstance(block, Grid)]
    assert [row.values["metric"] for row in table.rows][:2] == ["acc", "acc_norm"]
    assert "exact McNemar" in table.note


def test_samples_have_wrong_and_right_answers_and_what_was_asked(sources: Sources):
    found = samples(sources)
    assert found is not None
    [arc, text] = [block for block in found.blocks if isinstance(block, Readings)]
    assert arc.title == "arc_easy"
    rights = [reading.is_right for reading in arc.readings]
    assert rights == sorted(rights, key=bool)
    assert len([right for right in rights if right]) <= 4
    assert "? " + HOSTILE in arc.readings[0].asked
    assert "· a router\n  · a token" in arc.readings[0].asked
    assert {reading.is_right for reading in text.readings} == {None}


def test_speed_leaves_out_the_first_steps(sources: Sources):
    found = pace(sources.runs[0])
    assert found is not None
    steps = sources.runs[0].record.of("step")
    assert found.slow <= found.tokens_per_s
    assert found.tokens == steps[-1]["tokens"]
    speeds = sorted(line["tokens_per_s"] for line in steps[3:])
    assert speeds[0] <= found.tokens_per_s <= speeds[-1]
    assert found.training_s is not None
    assert found.training_s <= found.wall_s


def test_time_and_cost_have_a_row_for_every_run(sources: Sources):
    found = throughput(sources)
    assert found is not None
    [table] = [block.table for block in found.blocks if isinstance(block, Grid)]
    assert [row.values["run"] for row in table.rows] == ["one", "two"]
    assert all(row.values["work"] > 0 for row in table.rows)
    assert figures(wall_clock(sources))["wall-clock"].data["columns"]["row"] == [
        *("one", "one", "two", "two")
    ]


def test_what_was_read_is_counted(sources: Sources):
    found = data(sources)
    assert found is not None
    [table] = [block.table for block in found.blocks if isinstance(block, Grid)]
    assert [row.values["run"] for row in table.rows] == ["one", "two"]
    assert table.rows[0].values["tokens"] > 0


def test_what_befell_a_run_is_told_and_its_failure_comes_first(job: Path, tmp_path: Path):
    shutil.copytree(job / "one", tmp_path / "one")
    with (tmp_path / "one" / "record.jsonl").open("a") as file:
        for kind, problem in (("skip", "loss=nan"), ("stop", "grad_norm=inf")):
            line = {"kind": kind, "step": 8, "time_s": 0, "problem": problem}
            file.write(json.dumps(line) + "\n")
    found = read_sources([tmp_path])
    assert told(data(found)) == (
        "one: step 8 was left out, loss=nan.\none: stopped after step 8, grad_norm=inf."
    )
    first = verdict(found)
    assert first is not None
    assert first.blocks[0] == Claim("worse", "one stopped after step 8: grad_norm=inf.")


def test_a_run_knows_its_task_its_base_and_its_end(sources: Sources):
    one, two = sources.runs
    assert task_domains(one) == ["lines", HOSTILE]
    assert base_of(one, [one, two]) is None
    assert is_over(one)
