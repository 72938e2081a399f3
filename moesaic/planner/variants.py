"""The table of variants: the same experts trained, the others parked, kept, held small, or trained.

Letters of the rows: A masked, B frozen-kept, C natural, D natural with integers, E streamed. LoRA
trains adapters of the same experts instead; QLoRA beside integers.
"""

from collections.abc import Sequence
from dataclasses import replace

from moesaic.config.lora import LoraConfig
from moesaic.planner.adapters import Adapters
from moesaic.planner.devices import DEVICES, Device
from moesaic.planner.params import Plan
from moesaic.planner.scenario import Scenario, Training
from moesaic.planner.sections import training_convention
from moesaic.planner.table import Column, Row, Table
from moesaic.units import count, gb, gib

USUALLY_KEPT = 16
"""Experts of a layer that are kept frozen where nothing else is asked for."""


def variants(scenario: Scenario, known: Sequence[Device]) -> Table:
    """What each variant holds, needs, fits and costs.

    Raises:
        ConfigError: if the adapters asked for are not to be had in this model.
    """
    plans = plans_of(scenario.plan, scenario.assumptions.lora)
    full = Training.of(plans["full"], scenario.assumptions, scenario.sequence)
    rows = tuple(
        Row(_row(scenario, name, plan, full.flops.total, known)) for name, plan in plans.items()
    )
    columns = (
        Column("variant", "", left=True),
        Column("held", "held", count),
        Column("total", "memory", gb),
        Column("total", "", gib),
        Column("activations", "acti-\nvations", "{:.0%}".format),
        Column("recomputed", "recom-\nputing", gb),
        Column("recomputed_int8", "and 8-bit\nmoments", gb),
        Column("work", "FLOPs\nof full", "{:.0%}".format),
        Column("device", "smallest\nfitting", _named, left=True),
    )
    note = (
        f"{training_convention(scenario)}; {scenario.assumptions.batch} × {scenario.sequence:,} "
        f"tokens in {scenario.assumptions.passes} pass{'es' * (scenario.assumptions.passes > 1)}\n"
        "held: parameters on the device; streamed experts are in the memory of the CPU or on disk\n"
        "activations: their share of the memory; recomputing: with recompute=true\n"
        "FLOPs: per token, none for gradients of frozen weights; fitting: ✓r when recomputing"
    )
    return Table("variants", "Variants", columns, rows, note)


def plans_of(plan: Plan, lora: LoraConfig | None = None) -> dict[str, Plan]:
    """Every variant with as many experts trained as in a plan, as far as the model has enough.

    Args:
        plan: the slice.
        lora: the adapters of the variants that train some; None takes the usual ones.

    Raises:
        ConfigError: if the adapters asked for are not to be had in this model.
    """
    config, trained = plan.config, plan.train_experts or 0
    others, chosen = config.experts - trained, config.num_experts_per_tok or 0
    kept = plan.frozen_experts or USUALLY_KEPT

    def beside(frozen: int, **changes: object) -> Plan:
        return replace(plan, **{"frozen_experts": frozen, "hold": "weights", **changes})

    found: dict[str, Plan] = {}
    if trained >= chosen:
        found["A masked"] = beside(0)
    if kept < others and trained + kept >= chosen:
        found[f"B frozen-kept, {kept}"] = beside(kept)
    if others:
        found["C natural"] = beside(others)
        found["D natural, int8"] = beside(others, hold="int8")
        found["D natural, int4"] = beside(others, hold="int4")
        found["E natural, streamed"] = beside(others, hold="cpu")
    adapters = Adapters.of(config, lora, trained)
    if trained >= chosen:
        found["LoRA masked"] = beside(0, adapters=adapters)
    found["LoRA natural"] = beside(others, adapters=adapters)
    small = {"hold": "int4", "hold_linears": "int4"}
    found["QLoRA natural, int4"] = beside(others, adapters=adapters, **small)
    found["full"] = replace(plan, train_experts=None, frozen_experts=0, hold="weights")
    return found


def _row(
    scenario: Scenario, name: str, plan: Plan, full_work: float, known: Sequence[Device]
) -> dict[str, object]:
    assumptions, sequence = scenario.assumptions, scenario.sequence
    training = Training.of(plan, assumptions, sequence)
    small = Training.of(plan, assumptions.changed(states="int8"), sequence)
    memory = training.memory
    return {
        "variant": name,
        "held": plan.held,
        "total": memory.total,
        "activations": memory.peak.activations / memory.total,
        "recomputed": training.recomputed.total,
        "recomputed_int8": small.recomputed.total,
        "work": training.flops.total / full_work,
        "device": _smallest(training, known),
    }


def _smallest(training: Training, known: Sequence[Device]) -> dict[str, object] | None:
    """The device with least memory, and of equal ones the slowest, that holds a training; else how
    many of the largest do."""
    accelerators = [device for device in known if device is not DEVICES["laptop-cpu"]] or known
    by_size = sorted(accelerators, key=lambda device: (device.memory, device.bf16))
    device = next((d for d in by_size if training.fit(d).fits), by_size[-1])
    fit = training.fit(device)
    recomputes = fit.devices > fit.with_recompute
    return {"name": device.label, "devices": fit.with_recompute, "recompute": recomputes}


def _named(found: dict[str, object]) -> str:
    times = "" if found["devices"] == 1 else f"{found['devices']}× "
    return (
        f"{times}{found['name']} {'✓r' if found['recompute'] else '✓' if not times else ''}".strip()
    )
