"""What runs cost: tokens, time, work; and where the time went."""

from moesaic.planner.flops import mean_context, train_flops
from moesaic.planner.params import params
from moesaic.planner.table import Column, Row, Table
from moesaic.report.blocks import Grid, Section, section
from moesaic.report.figures import Axis, bars
from moesaic.report.runs import Pace, pace
from moesaic.report.sizes import model_of
from moesaic.report.sources import Run, Sources
from moesaic.report.words import listed
from moesaic.units import count, duration, flop


def throughput(sources: Sources) -> Section | None:
    """Speed, tokens, hours and operations of every run."""
    rows = [_row(run, found) for run in sources.runs if (found := pace(run))]
    if not rows:
        return None
    columns = (
        Column("run", "run", left=True),
        Column("speed", "tok/s\nmedian", lambda value: f"{value:,.0f}"),
        Column("slow", "tok/s, nine in\nten steps reach", lambda value: f"{value:,.0f}"),
        Column("steps", "steps", lambda value: f"{value:,}"),
        Column("tokens", "tokens", count),
        Column("wall", "wall-clock", duration),
        Column("hours", "device\nhours", "{:.3f}".format),
        Column("work", "operations", flop),
        Column(
            "rate", "operations\nper second", lambda value: flop(value).replace("FLOP", "FLOP/s")
        ),
    )
    note = (
        "Wall-clock is from the first line of the record to the last, without pauses: loading, "
        "scoring, evaluating and saving included. Hours times the machine’s price is the cost. "
        "Operations are the matrix products the steps needed (moesaic plan), not those of "
        f"recomputing or evaluating. {_devices(sources)}"
    )
    return section(
        "cost", "Throughput and cost", [Grid(Table("cost", "", columns, tuple(rows), note))]
    )


def wall_clock(sources: Sources) -> Section | None:
    """Steps against everything else."""
    rows: list[tuple[str, str, float, str]] = []
    for run in sources.runs:
        found = pace(run)
        if found is None or found.training_s is None:
            continue
        training = min(found.training_s, found.wall_s)
        rest = found.wall_s - training
        rows.append((run.name, "training steps", training / 60, duration(training)))
        rows.append((run.name, "everything else", rest / 60, duration(rest)))
    figure = bars(
        "wall-clock",
        "Where the time went",
        "Everything else: loading and scoring before the first step, evaluating, saving.",
        rows,
        Axis("minutes", from_zero=True),
    )
    return section("wall-clock", "Wall-clock", [figure])


def _row(run: Run, found: Pace) -> Row:
    work = _work(run, found.tokens)
    return Row(
        {
            "run": run.name,
            "speed": found.tokens_per_s,
            "slow": found.slow,
            "steps": found.steps,
            "tokens": found.tokens,
            "wall": found.wall_s,
            "hours": found.wall_s / 3600,
            "work": work,
            "rate": work and work / found.tokens * found.tokens_per_s,
        }
    )


def _devices(sources: Sources) -> str:
    """What the runs ran on."""
    found: dict[str, list[str]] = {}
    for run in sources.runs:
        hardware = run.record.start["hardware"]
        cpu = f"{hardware.get('cpu')}, {hardware.get('cores')} cores"
        found.setdefault(str(hardware.get("gpu") or cpu), []).append(run.name)
    if len(found) == 1:
        return f"All on {next(iter(found))}."
    return " ".join(f"{listed(names)} on {device}." for device, names in found.items())


def _work(run: Run, tokens: int) -> float | None:
    """Operations of all steps; None where the planner counts another slice."""
    config, esft = model_of(run), run.config.get("esft")
    if config is None or (esft and esft["lora"]):
        return None
    experts, frozen = None, 0
    if run.slice is not None:
        chosen = run.slice.selection
        sizes = {(len(ids), len(chosen.frozen.get(at, ()))) for at, ids in chosen.experts.items()}
        if len(sizes) != 1:
            return None
        [(experts, frozen)] = sizes
    plan = params(config, experts, frozen)
    return tokens * train_flops(plan, mean_context(run.config["data"]["seq_len"])).total
