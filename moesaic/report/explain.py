"""What each variant of a study does, in words, and what to write to have it."""

from collections.abc import Mapping
from typing import Any

from moesaic.planner.table import Column, Row, Table
from moesaic.report.sources import Study
from moesaic.report.words import listed

_HELD = {
    "weights": "held as they are",
    "int8": "held in integers of 8 bits",
    "int4": "held in integers of 4 bits",
    "cpu": "in the CPU’s memory, brought when they are needed",
    "disk": "on disk, read when they are needed",
}


def explained(study: Study) -> Table | None:
    """A row for every variant whose settings are told; None without any."""
    told = {
        name: one.setting for name, one in study.found.variants.items() if "esft" in one.setting
    }
    if not told:
        return None
    rows = tuple(Row({"name": name, **_words(setting["esft"])}) for name, setting in told.items())
    columns = (
        Column("name", "variant", left=True),
        Column("trained", "what is trained", left=True),
        Column("reach", "while training\ntokens may go to", left=True),
        Column("others", "the other experts are", left=True),
        Column("table", "in the run file, under [esft]", left=True),
    )
    note = (
        "Once merged, all are checkpoints of one kind: every token may go to every expert. What a "
        "variant takes on your model and GPU, moesaic plan MODEL --train-experts N says."
    )
    return Table("explained", "What the variants are", columns, rows, note)


def _words(esft: Mapping[str, Any] | None) -> dict[str, str]:
    if esft is None:
        return {
            "trained": "everything",
            "reach": "all experts",
            "others": "trained too",
            "table": "leave [esft] out",
        }
    return {
        "trained": _trained(esft),
        "reach": _reach(esft),
        "others": _others(esft),
        "table": ", ".join(f"{key} = {_written(value)}" for key, value in esft.items()),
    }


def _trained(esft: Mapping[str, Any]) -> str:
    lora = esft.get("lora")
    if not lora:
        return "the chosen experts"
    where = listed([str(target) for target in lora.get("targets", ())])
    return f"adapters of rank {lora.get('rank')} beside the chosen {where}"


def _reach(esft: Mapping[str, Any]) -> str:
    if esft.get("variant") == "masked":
        return "the chosen ones only"
    if esft.get("variant") == "frozen-kept":
        return f"these and {esft.get('frozen_experts')} more"
    return "all, as in use"


def _others(esft: Mapping[str, Any]) -> str:
    if esft.get("variant") == "masked":
        return "left on disk, never read"
    held = _HELD.get(str(esft.get("hold", "weights")), str(esft.get("hold")))
    return f"{held}; the rest left on disk" if esft.get("variant") == "frozen-kept" else held


def _written(value: Any) -> str:
    """A value as in a run file."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {_written(one)}' for key, one in value.items())} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_written, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)
