"""The table of variants."""

import pytest

from moesaic.config.lora import LoraConfig
from moesaic.config.presets import DEEPSEEK_MOE_2B_SWITCH, DEEPSEEK_V2_LITE, TINY_V1, TINY_V2
from moesaic.planner.adapters import adapted_tensors, adapter_size
from moesaic.planner.assumptions import Assumptions
from moesaic.planner.devices import DEVICES, get_device
from moesaic.planner.flops import train_flops
from moesaic.planner.memory import train_memory
from moesaic.planner.params import Plan, params
from moesaic.planner.scenario import Scenario
from moesaic.planner.table import Table
from moesaic.planner.variants import plans_of, variants

ALL = list(DEVICES.values())


def table_of(plan: Plan, known=ALL, **assumptions) -> Table:
    return variants(Scenario.of(plan, Assumptions(**assumptions)), known)


def rows_of(plan: Plan, known=ALL, **assumptions) -> dict[str, dict]:
    rows = table_of(plan, known, **assumptions).to_json()
    return {row["variant"]: row for row in rows}


def test_every_variant_trains_the_same_experts():
    plans = plans_of(params(DEEPSEEK_V2_LITE, 8))
    assert [name[0] for name in plans] == ["A", "B", "C", "D", "D", "E", "L", "L", "Q", "f"]
    weights = {plan.trained for name, plan in plans.items() if name[0] in "ABCDE"}
    assert weights == {1_799_356_416}
    assert plans["full"].trained == plans["full"].total


def test_variants_with_lora_train_adapters_of_the_same_experts():
    plans = plans_of(params(DEEPSEEK_V2_LITE, 8))
    experts = dict.fromkeys(DEEPSEEK_V2_LITE.moe_layers, range(8))
    size = adapter_size(adapted_tensors(DEEPSEEK_V2_LITE, LoraConfig(), experts), rank=16)
    lora = {name: plan for name, plan in plans.items() if "LoRA" in name}
    assert {plan.trained for plan in lora.values()} == {size}
    assert lora["LoRA masked"].held == plans["A masked"].held + size
    assert lora["LoRA natural"].held == plans["C natural"].held + size
    other = plans_of(params(DEEPSEEK_V2_LITE, 8), LoraConfig(rank=4))
    assert other["LoRA natural"].trained == size / 4


def test_adapters_take_the_parts_that_a_model_has():
    plans = plans_of(params(DEEPSEEK_MOE_2B_SWITCH, 4))
    adapters = plans["LoRA natural"].adapters
    assert adapters is not None
    assert adapters.lora.targets == ("attention", "experts")


def test_linear_layers_as_integers_and_a_parked_embedding_take_less():
    plain = rows_of(params(DEEPSEEK_V2_LITE, 8))
    small = rows_of(params(DEEPSEEK_V2_LITE, 8), hold_linears="int8", park_embedding=True)
    linears = 371_589_120 + 67_239_936 + 449_839_104
    less = linears * (2 - 1.03125) + 2 * 209_715_200
    for name in ("A masked", "D natural, int4", "LoRA masked"):
        assert plain[name]["total"] - small[name]["total"] == less, name
    assert plain["full"]["total"] == small["full"]["total"]


def test_deepseek_v2_lite_takes_no_more_than_is_promised():
    """One sequence of 4,096 tokens in bfloat16, eight experts trained, recomputing."""
    rows = rows_of(params(DEEPSEEK_V2_LITE, 8), sequence=4096, recompute=True)
    masked = rows["A masked"]
    assert masked["recomputed"] <= 21e9
    assert masked["recomputed_int8"] <= 14e9
    assert rows["C natural"]["recomputed"] <= 44e9
    assert rows["D natural, int4"]["recomputed"] <= 1.4 * masked["recomputed"]


def test_as_many_experts_are_kept_as_asked_for():
    plans = plans_of(params(DEEPSEEK_V2_LITE, 8, frozen_experts=24))
    assert plans["B frozen-kept, 24"].frozen_experts == 24


@pytest.mark.parametrize(
    ("trained", "frozen", "missing"),
    [(64, 0, {"B", "C", "D", "E"}), (50, 0, {"B"}), (4, 8, {"A"})],
)
def test_what_the_model_has_not_enough_experts_for_is_left_out(
    trained: int, frozen: int, missing: set[str]
):
    found = {name[0] for name in plans_of(params(TINY_V1, trained, frozen))}
    assert set("ABCDEf") - found == missing


def test_a_row_says_what_the_plan_of_its_variant_does():
    size, rows = params(DEEPSEEK_V2_LITE, 8), rows_of(params(DEEPSEEK_V2_LITE, 8), sequence=2048)
    memory = train_memory(params(DEEPSEEK_V2_LITE, 8, 56, hold="int4"), sequence=2048)
    assert rows["D natural, int4"]["total"] == memory.total
    assert rows["D natural, int4"]["activations"] == memory.peak.activations / memory.total
    assert rows["A masked"]["held"] == rows["E natural, streamed"]["held"] == size.held
    assert rows["C natural"]["held"] == rows["D natural, int8"]["held"] == size.total
    full, part = (train_flops(params(DEEPSEEK_V2_LITE, n), 1024.5).total for n in (None, 8))
    assert rows["A masked"]["work"] == pytest.approx(part / full)


def test_eight_bit_moments_and_recomputing_take_less():
    for row in rows_of(params(DEEPSEEK_V2_LITE, 8)).values():
        assert row["recomputed_int8"] < row["recomputed"] < row["total"]


def test_holding_frozen_experts_small_takes_less():
    rows = rows_of(params(DEEPSEEK_V2_LITE, 8))
    assert rows["QLoRA natural, int4"]["total"] < rows["LoRA natural"]["total"]
    order = ("A masked", "E natural, streamed", "D natural, int4", "D natural, int8", "C natural")
    totals = [rows[name]["total"] for name in (*order, "full")]
    assert totals == sorted(totals)


def test_the_smallest_device_is_named():
    rows = rows_of(params(DEEPSEEK_V2_LITE, 8))
    assert rows["A masked"]["device"] == {"name": "RTX 3090", "devices": 1, "recompute": False}
    assert rows["D natural, int8"]["device"]["recompute"]
    assert rows["full"]["device"] == {"name": "H200 SXM", "devices": 1, "recompute": False}


def test_one_device_is_looked_at_when_one_is_given():
    rows = rows_of(params(DEEPSEEK_V2_LITE, 8), [get_device("a100-40")])
    assert rows["C natural"]["device"] == {"name": "A100 40 GB", "devices": 2, "recompute": False}
    assert rows["A masked"]["device"]["devices"] == 1


def test_the_note_says_what_a_state_takes():
    note = table_of(params(TINY_V2, 8), precision="mixed", states="int8", passes=4).note
    assert "mixed: 4 B a weight, 4 B a gradient, AdamW with two moments of 1.016 B" in note
    assert "4 passes" in note
    assert "memory of the CPU" in table_of(params(TINY_V2, 8), offload=True).note
