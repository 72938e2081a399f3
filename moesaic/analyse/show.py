"""``routing.json`` as tables for a terminal."""

from collections.abc import Iterator
from statistics import fmean
from typing import Any

from moesaic.planner.table import Column, Row, Table
from moesaic.units import count


def shown_tables(values: dict[str, Any]) -> Iterator[Table]:
    """Tables of what was found, the main numbers of each figure."""
    yield _domains(values)
    yield _layers(values)
    if len(values["domains"]) > 1:
        yield _overlap(values)
    if values["drift"] is not None:
        yield _drift(values)
    for which in ("model", "against"):
        found = (values["ablation"] or {}).get(which)
        if found is not None:
            yield _ablation(values[which], found)


def _domains(values: dict[str, Any]) -> Table:
    covered = (values["coverage"] or {}).get("domains", {})
    rows = []
    for name, of in values["domains"].items():
        load, before = values["loads"][name], of["against"] or {}
        rows.append(
            Row(
                {
                    "domain": name,
                    "tokens": of["tokens"],
                    "loss": _with_error(of["loss"], of["stderr"]),
                    "rise": _with_error(before.get("rise"), before.get("rise_stderr"), "+"),
                    "max_violation": max(load["max_violation"]),
                    "entropy": min(load["entropy"]),
                    "half": fmean(load["half"]),
                    "first": fmean(row[0] for row in load["gate_by_rank"]),
                    "held": covered[name]["mean"]["choices"] if covered else None,
                }
            )
        )
    experts = values["model"]["experts"]
    shown = [
        Column("domain", "domain", left=True),
        Column("tokens", "tokens", count),
        Column("loss", "loss"),
        *([Column("rise", "above\nthe other")] if values["against"] else []),
        Column("max_violation", "MaxVio,\nhighest", "{:.2f}".format),
        Column("entropy", "load entropy,\nlowest", "{:.3f}".format),
        Column("half", f"of {experts} experts,\nhalf the gate mass", "{:.1f}".format),
        Column("first", "gate mass\nof the best", _percent),
        *([Column("held", "choices\nheld", _percent)] if covered else []),
    ]
    note = "loss in nats per token ± standard error; highest, lowest and means are over layers"
    return Table("domains", "domains", tuple(shown), tuple(rows), note)


def _layers(values: dict[str, Any]) -> Table:
    special, together = values["specialisation"] or {}, values["coactivation"] or {}
    words = values["vocabulary"] or {"layers": []}
    alike = (values["weights"] or {}).get("experts", {})
    foretold = dict(zip(words["layers"], words.get("foretold", ()), strict=True))
    rows = []
    for place, layer in enumerate(values["layers"]):
        found = {
            "layer": layer,
            "max_violation": values["all_loads"]["max_violation"][place],
            "unused": values["all_loads"]["unused"][place],
            "word": foretold.get(layer),
        }
        if special:
            used = [share for share in special["experts"][place] if share is not None]
            found |= {"bits": special["corrected"][place], "halves": special["halves"][place]}
            found["experts"] = fmean(used)
        if together:
            pair = next(iter(together["layers"][place]["pairs"]), None)
            if pair is not None:
                found["pair"] = f"{pair['experts'][0]}+{pair['experts'][1]} ({pair['lift']:.1f}×)"
        if alike:
            found["alike"] = alike["quantiles"][place][-1]
        rows.append(Row(found))
    return Table(
        "layers",
        "layers, over all domains alike",
        (
            Column("layer", "layer"),
            Column("max_violation", "MaxVio", "{:.2f}".format),
            Column("unused", "unused\nexperts"),
            Column("bits", "bits domain\nand expert share", "{:.3f}".format),
            Column("halves", "of halves of\none domain", "{:.3f}".format),
            Column("experts", "specialisation\nof experts", _percent),
            Column("word", "foretold by\nthe token", _percent),
            Column("pair", "closest pair\n(lift)"),
            Column("alike", "most alike\nweights", "{:.3f}".format),
        ),
        tuple(rows),
        "bits are corrected for chance; weights by cosine, neurons aligned by place alone",
    )


def _overlap(values: dict[str, Any]) -> Table:
    found = values["overlap"]
    names, mean = found["domains"], found["mean"]
    rows = []
    for i, name in enumerate(names):
        half = found["halves"][name]
        cells = {
            other: f"{mean['shared'][i][j]:.1f}  {mean['divergence'][i][j]:.3f}"
            for j, other in enumerate(names)
            if i != j
        }
        if half is not None:
            cells[name] = f"({half['shared']:.1f}  {half['divergence']:.3f})"
        rows.append(Row({"": name, **cells}))
    return Table(
        "overlap",
        "overlap of domains",
        (Column("", "", left=True), *(Column(name, name) for name in names)),
        tuple(rows),
        f"of the {found['top']} busiest experts, how many are the same (drawn: "
        f"{found['by_chance']:.1f}), and the divergence of the loads in bits; means over layers. "
        "In brackets: halves of one domain",
    )


def _drift(values: dict[str, Any]) -> Table:
    columns = ("first", "choices", "tokens", "divergence")
    domains = values["drift"]["domains"].items()
    rows = tuple(
        Row({"domain": name, **{column: fmean(of[column]) for column in columns}})
        for name, of in domains
    )
    return Table(
        "drift",
        "routing of the same tokens by the other checkpoint",
        (
            Column("domain", "domain", left=True),
            Column("first", "another\nbest expert", _percent),
            Column("choices", "other\nchoices", _percent),
            Column("tokens", "tokens with\nother choices", _percent),
            Column("divergence", "divergence of\nscores, bits", "{:.4f}".format),
        ),
        rows,
        "means over layers",
    )


def _ablation(model: dict[str, Any], found: dict[str, Any]) -> Table:
    rows = [Row({"what": "all experts", **_losses(found["natural"])})]
    for name in ("shared", "disabled", "chosen"):
        for point in found[name]:
            if point["rise_stderr"] != 0 or point["rise"] != 0:
                rows.append(Row({"what": _told(name, point), **_losses(point)}))
    redundancy = found["redundancy"]
    mean = "" if redundancy is None else f"mean rise over the ratios {redundancy:+.4f} nats | "
    left_out = "".join(f"; no {name}: {why}" for name, why in found["left_out"].items())
    return Table(
        "ablation",
        f"switched off in {model['folder']}",
        (Column("what", "", left=True), Column("loss", "loss"), Column("rise", "rise")),
        tuple(rows),
        f"{mean}{count(found['tokens'])} tokens{left_out}",
    )


def _told(experiment: str, point: dict[str, Any]) -> str:
    """What was switched off, in words."""
    if experiment == "shared":
        return f"no shared experts, {point['chosen']} routed"
    if experiment == "disabled":
        return f"the {point['experts']} preferred experts off ({point['ratio']:.1%})"
    return f"{point['chosen']} {'expert' if point['chosen'] == 1 else 'experts'} per token"


def _losses(point: dict[str, Any]) -> dict[str, str | None]:
    return {
        "loss": _with_error(point["loss"], point["stderr"]),
        "rise": _with_error(point["rise"], point["rise_stderr"], "+"),
    }


def _with_error(value: float | None, error: float | None, sign: str = "") -> str | None:
    if value is None:
        return None
    return f"{value:{sign}.4f}" + ("" if error is None else f" ± {error:.4f}")


def _percent(share: float) -> str:
    return f"{share:.1%}"
