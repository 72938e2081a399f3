"""``moesaic eval``: what a checkpoint scores on published tasks, and whether a base scores less."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from moesaic.eval.results import EvalResult, Score
    from moesaic.eval.statistics import Difference, Estimate
    from moesaic.planner.table import Table


def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint folder.")],
    tasks: Annotated[
        str,
        typer.Option(
            help="Names with commas between, as gsm8k,mmlu,arc_challenge; NAME=DATA gives one its "
            "own data, as perplexity=corpus:english. A wrong name lists all."
        ),
    ],
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder with the files of data sets.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write results.json and every answer here, and go on from them."
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Compare item by item: a checkpoint, or what --out wrote for another model.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Ask only this many items of each task.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Ask otherwise, as shots=5.", metavar="NAME=VALUE"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json.")] = False,
) -> None:
    """Score a checkpoint on published tasks, asked as lm-evaluation-harness asks.

    Every score has its standard error and 95 % interval over items. With --base
    the same items are compared one by one, which tells far smaller differences
    apart than two scores beside each other. Nothing is fetched: --data holds the
    files, and where one is missing its name and fields are told.

    With --out the same command goes on with an evaluation that was stopped, and
    one that is finished is shown again without asking anything.

    Settings of --set: shots, seed, chat, max_length, max_new_tokens,
    batch_tokens, dtype, hold (disk where the model is larger than the memory),
    device, and allow_code, without which no program that the model writes is run.
    """
    from moesaic.config.eval import EvalConfig
    from moesaic.config.load import parse_changes
    from moesaic.eval.progress import display
    from moesaic.eval.run import evaluate

    given = [] if limit is None else [f"limit={limit}"]
    config = parse_changes(EvalConfig, [*given, *(changes or [])])
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    try:
        with display(sys.stderr) as shown:
            result = evaluate(folder, names, out, base, data, shown, **config.model_dump())
    except KeyboardInterrupt:
        kept = "; give the same command again to go on" if out else ", and nothing was kept"
        print(f"moesaic: stopped{kept}", file=sys.stderr)
        raise typer.Exit(130) from None
    print(json.dumps(result.to_json(), ensure_ascii=False)) if as_json else _print(result)


eval = evaluate  # the command's name


def _print(result: "EvalResult") -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    console.print(_scores(result).to_rich())
    if result.base is not None:
        console.print()
        console.print(_differences(result).to_rich())


def _scores(result: "EvalResult") -> "Table":
    from moesaic.planner.table import Column, Row, Table

    rows = [
        Row(
            {
                "task": name if place == 0 else "",
                "metric": metric,
                "n": task.scores.n,
                "value": _number(score.estimate.value, score.is_share),
                "stderr": _error(score.estimate, score.is_share),
                "interval": _interval(score.estimate, score.is_share),
            },
            strong=place == 0,
        )
        for name, task in result.tasks.items()
        for place, (metric, score) in enumerate(task.scores.metrics.items())
    ]
    return Table(
        key="scores",
        title=f"{result.model.folder} | {result.model.digest[:12]}",
        columns=(
            Column("task", "task", left=True),
            Column("metric", "metric", left=True),
            Column("n", "items"),
            Column("value", "score"),
            Column("stderr", "error"),
            Column("interval", "95 % interval"),
        ),
        rows=tuple(rows),
        note="errors and intervals are over items: how far other items of the kind would move a "
        "score",
    )


def _differences(result: "EvalResult") -> "Table":
    from moesaic.planner.table import Column, Row, Table

    assert result.base is not None
    rows: list[Row] = []
    for name, task in result.tasks.items():
        for place, (metric, change) in enumerate(task.against.items()):
            score = task.scores.metrics[metric]
            told = _change(change, score)
            first = {"task": name if place == 0 else "", "metric": metric}
            rows.append(Row({**first, **told, "verdict": task.verdict(metric)}, place == 0))
    return Table(
        key="against",
        title=f"minus the base | {result.base.folder} | {result.base.digest[:12]}",
        columns=(
            Column("task", "task", left=True),
            Column("metric", "metric", left=True),
            Column("base", "base"),
            Column("difference", "difference"),
            Column("stderr", "error"),
            Column("interval", "95 % interval"),
            Column("p", "p", "{:.2g}".format),
            Column("verdict", "the model is", left=True),
        ),
        rows=tuple(rows),
        note="differences of shares in points, item by item; p: how often chance alone would make "
        "as large a one\nfrom p = 0.05 on the two cannot be told apart by these items; of twenty "
        "comparisons chance makes about one look sure",
    )


def _change(change: "Difference", score: "Score") -> dict[str, str | float | None]:
    is_share = score.is_share
    scale, digits = (100, 2) if is_share else (1, 4)
    ends = (change.low, change.high)
    return {
        "base": _number(change.base, is_share),
        "difference": f"{scale * change.difference:+.{digits}f}",
        "stderr": None if change.stderr is None else f"± {scale * change.stderr:.{digits}f}",
        "interval": None
        if change.low is None
        else " to ".join(f"{scale * end:+.{digits}f}" for end in ends if end is not None),
        "p": change.p,
    }


def _number(value: float, is_share: bool) -> str:
    return f"{100 * value:.2f} %" if is_share else f"{value:.4f}"


def _error(estimate: "Estimate", is_share: bool) -> str | None:
    if estimate.stderr is None:
        return None
    return f"± {100 * estimate.stderr:.2f}" if is_share else f"± {estimate.stderr:.4f}"


def _interval(estimate: "Estimate", is_share: bool) -> str | None:
    if estimate.low is None or estimate.high is None:
        return None
    scale, digits = (100, 2) if is_share else (1, 4)
    return f"{scale * estimate.low:.{digits}f} to {scale * estimate.high:.{digits}f}"
