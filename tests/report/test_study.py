"""Of several variants the page says which to use, when, and how sure that is."""

import tomllib
from pathlib import Path

import pytest

from moesaic.config.esft import EsftConfig
from moesaic.report.advice import study_claims
from moesaic.report.explain import explained
from moesaic.report.forms import Outcome
from moesaic.report.page import make_page
from moesaic.report.read import read_sources
from moesaic.report.study import Variant, difference, equals, preferences, variants_of


def variant(name: str, learned: list[float], forgot: list[float]) -> Variant:
    """One with a fall of the task's loss and a rise of the other's, by seed."""
    runs = [
        Outcome(
            as_trained={"task": 5.0 - fall},
            merged={"task": 5.0 - fall, "rest": 4.0 + rise},
            tokens_per_s=100.0,
            peak_over_start_bytes=10,
        )
        for fall, rise in zip(learned, forgot, strict=True)
    ]
    return Variant(name, {"task": 5.0, "rest": 4.0}, ("task",), ("rest",), tuple(runs))


MUCH = variant("much", [2.0, 2.1, 1.9], [1.0, 1.1, 0.9])
LITTLE = variant("little", [1.0, 1.1, 0.9], [0.1, 0.11, 0.09])
ALIKE = variant("alike", [1.0, 1.2, 0.8], [0.1, 0.12, 0.08])
POOR = variant("poor", [0.9, 1.0, 0.8], [0.9, 1.0, 0.8])


def test_what_was_learned_and_forgotten_are_changes_against_the_base():
    assert MUCH.learned.value == pytest.approx(2.0)
    assert MUCH.forgot.value == pytest.approx(1.0)
    assert MUCH.gap.value == 0.0


def test_runs_are_compared_seed_by_seed():
    found = difference([1.0, 2.0, 3.0], [0.9, 1.9, 2.9])
    assert found.value == pytest.approx(0.1)
    assert found.half == pytest.approx(0.0, abs=1e-9)


def test_the_best_variant_depends_on_what_forgetting_costs():
    found = preferences([MUCH, LITTLE, POOR])
    assert [one.variant.name for one in found] == ["much", "little"]
    assert found[0].low == 0.0
    assert found[0].high == found[1].low == pytest.approx(1.0 / 0.9)
    assert found[1].high is None


def test_variants_that_seeds_do_not_tell_apart_stand_together():
    assert [one.name for one in equals(LITTLE, [LITTLE, ALIKE, MUCH])] == ["alike"]
    [_, careful] = preferences([MUCH, LITTLE, ALIKE])
    assert {careful.variant.name, *(one.name for one in careful.equals)} == {"little", "alike"}


def test_a_variant_that_is_worse_in_both_respects_is_never_advised():
    assert all(one.variant.name != "poor" for one in preferences([MUCH, LITTLE, POOR]))


def test_the_published_study_says_what_its_numbers_say(study: Path):
    variants = {one.name: one for one in variants_of(read_sources([study]).studies[0].found)}
    assert variants["A masked"].merged.value == pytest.approx(4.1324, abs=1e-4)
    assert variants["A masked"].gap.value == pytest.approx(0.438, abs=1e-3)
    assert variants["A masked"].forgot.half == pytest.approx(0.0012, abs=1e-4)
    assert variants["A masked"].task == ("math",)
    alike = {one.name for one in equals(variants["C natural"], list(variants.values()))}
    assert alike == {"D natural, int8", "D natural, int4", "E natural, disk"}


def test_the_advice_names_a_variant_for_each_wish(study: Path):
    learned, forgot, advice = study_claims(read_sources([study]).studies[0])
    assert learned.finding == "better"
    assert forgot.finding == "worse"
    assert advice.finding == "advice"
    assert "Use LoRA natural if the task and what the model knew before count" in advice.text
    assert "Use A masked to forget least" in advice.text
    assert "Use full only if forgetting does not matter" in advice.text
    assert "LoRA natural leads D natural, int4 by +0.059 nats" in advice.detail


def test_a_newcomer_is_told_what_each_variant_is_and_how_to_have_it(study: Path):
    sources = read_sources([study])
    page = make_page(sources, "file")
    assert page.title == "Which variant of partial training to use"
    table = explained(sources.studies[0])
    assert table is not None
    rows = {row.values["name"]: row.values for row in table.rows}
    assert set(rows) == set(sources.studies[0].found.variants)
    assert rows["A masked"]["reach"] == "the chosen ones only"
    assert rows["B frozen-kept"]["table"] == 'variant = "frozen-kept", frozen_experts = 16'
    assert rows["D natural, int4"]["others"] == "held in integers of 4 bits"
    assert rows["full"]["table"] == "leave [esft] out"
    for row in rows.values():
        if row["trained"] != "everything":
            EsftConfig.model_validate(tomllib.loads(row["table"].replace('", ', '"\n')) | ONE)


ONE = {"experts": 1}
