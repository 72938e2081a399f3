"""The architecture study as tables and as a chart."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure.chart import Panel, write_charts
from benchmarks.measure.seeds import shown
from moesaic.planner.table import Column, Row, Table
from moesaic.units import count, flop


def size_table(cases: Mapping[str, Any]) -> Table:
    """Sizes, speeds, balance, and the loss over all domains."""
    columns = (
        Column("name", "architecture", left=True),
        Column("parameters", "parameters", count),
        Column("activated", "activated", count),
        Column("train_flops_per_token", "training\nper token", flop),
        Column("tokens", "tokens\nseen", count),
        Column("tokens_per_s", "tok/s", lambda value: f"{value:,}"),
        Column("max_violation", "MaxVio", lambda value: f"{value:.2f}"),
        Column("seeds", "seeds"),
        Column("held_out_loss", "held-out loss", shown),
    )
    note = (
        "Nats per token, mean over the domains, ± 95 % t-interval over seeds. Prediction modules\n"
        "are in the work of training, not in the parameters. tok/s: the fastest tenth of the steps."
    )
    return Table("architectures", "Architectures at equal data", columns, _rows(cases), note)


def loss_table(cases: Mapping[str, Any]) -> Table:
    """The loss of every domain, and of the first seed at every learning rate."""
    domains = next(iter(cases.values()))["by_domain"]
    rates = sorted({rate for case in cases.values() for rate in case["first_seed_by_rate"]})
    columns = (
        Column("name", "architecture", left=True),
        *(Column(domain, domain, shown) for domain in domains),
        *(Column(rate, f"seed 0\nat {rate}", lambda loss: f"{loss:.4f}") for rate in rates),
    )
    note = "Nats per token; the last columns at other learning rates, mean over the domains."
    return Table("losses", "Held-out loss by domain", columns, _rows(cases), note)


def _rows(cases: Mapping[str, Any]) -> tuple[Row, ...]:
    return tuple(
        Row(
            {"name": name, **case, **case["by_domain"], **case["first_seed_by_rate"]},
            strong=name == "DeepSeekMoE",
        )
        for name, case in cases.items()
    )


def verdicts(claims: Mapping[str, Any]) -> Table:
    """What became of every claim."""
    columns = (
        Column("claim", "published claim", left=True),
        Column("sides", "sides", left=True),
        Column("difference", "held-out loss", lambda value: shown(value, "+")),
        Column("verdict", "at this scale", left=True),
        Column("first_seed_at_best_rates", "seed 0, each at\nits best rate", "{:+.4f}".format),
        Column("printed", "printed", left=True),
    )
    rows = (
        Row({"claim": text, "sides": f"{found['left']} against {found['right']}", **found})
        for text, found in claims.items()
    )
    return Table("claims", "Claims", columns, tuple(rows), "Differences between equal seeds.")


def draw(path: Path, cases: Mapping[str, Any]) -> None:
    """Loss over the run, and at its end by seed."""
    places = {name: float(place) for place, name in enumerate(cases, start=1)}
    ends = {
        name: [(places[name], loss) for loss in case["held_out_loss_by_seed"]]
        for name, case in cases.items()
    }
    bars = {
        name: (places[name], *case["held_out_loss"])
        for name, case in cases.items()
        if case["seeds"] > 1
    }
    panels = [
        Panel(
            "held-out loss, nats per token",
            "step",
            {name: case["loss_curve"] for name, case in cases.items()},
        ),
        Panel(
            "at the end, each seed, and 95 % interval of the mean",
            "",
            ends,
            as_points=True,
            bars=bars,
            places={place: name for name, place in places.items()},
        ),
    ]
    write_charts(path, "Architectures at equal data on the shipped corpus", panels)
