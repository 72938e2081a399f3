"""``moesaic score``: which experts of a checkpoint some data needs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesaic.config.esft import SCORE_TOKENS
from moesaic.units import count

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from moesaic.data.batch import Batch
    from moesaic.esft.score import ExpertScores
    from moesaic.esft.select import Selection
    from moesaic.model.transformer import Transformer
    from moesaic.planner.table import Table

_ROW = 4096
"""Tokens of a row, and of a batch where the model's context is shorter."""
_SHOWN = 6
"""Experts of a layer that the table names."""


def score(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint folder.")],
    data: Annotated[
        list[str],
        typer.Option(help="A file, a pattern, or corpus:NAME; may be repeated."),
    ],
    experts: Annotated[
        int | None, typer.Option(help="How many of each layer to select; 8 if it has as many.")
    ] = None,
    kind: Annotated[
        str,
        typer.Option("--score", help="token: how often it is chosen; gate: with what gate values."),
    ] = "token",
    tokens: Annotated[int, typer.Option(help="How many to score on.")] = SCORE_TOKENS,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the selection here, as published.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print all scores as JSON.")] = False,
) -> None:
    """Score every expert on some data, and show how much of it the best ones cover."""
    from moesaic.config.esft import EsftConfig
    from moesaic.config.published import read_config
    from moesaic.esft.select import select, write_selection
    from moesaic.model.build import load_model
    from moesaic.train.setup import choose_device

    config = read_config(folder)
    if experts is None:
        experts = min(max(8, config.num_experts_per_tok or 0), config.experts or 8)
    asked = EsftConfig.parse({"experts": experts, "score": kind, "score_tokens": tokens})
    batches = _batches(folder, data, min(_ROW, config.max_position_embeddings))
    scores = _score(load_model(folder, dtype, choose_device(device)), batches, asked.score_tokens)
    selection = select(scores, asked)
    if out is not None:
        write_selection(out, selection)
    if as_json:
        print(json.dumps(_as_json(scores, selection)))
    else:
        _print_table(scores, selection)


def _batches(folder: Path, data: list[str], seq_len: int) -> "Iterator[Batch]":
    from moesaic.config.data import DataConfig
    from moesaic.data.loader import Loader
    from moesaic.data.tokenizer import Tokenizer

    sources = [{"path": path, "split": "all"} for path in data]
    config = DataConfig.parse({"sources": sources, "seq_len": seq_len, "epochs": 1})
    return Loader(config, Tokenizer.load(folder), max(1, _ROW // seq_len))


def _score(model: "Transformer", batches: "Iterator[Batch]", tokens: int) -> "ExpertScores":
    from rich.console import Console
    from rich.progress import Progress

    from moesaic.esft.score import first_tokens, score_experts

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("scoring", total=tokens)
        return score_experts(
            model,
            first_tokens(batches, tokens),
            lambda scored: bar.update(task, completed=scored),
        )


def _as_json(scores: "ExpertScores", selection: "Selection") -> dict[str, Any]:
    return {
        "tokens": scores.tokens,
        "loss": scores.loss,
        "token": scores.token,
        "gate": scores.gate,
        "selected": selection.experts,
        "covered": {kind: scores.covered(kind, selection.experts) for kind in ("token", "gate")},
    }


def _print_table(scores: "ExpertScores", selection: "Selection") -> None:
    """Per layer the best experts with their shares, and what the selected ones cover."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    console.print(_table(scores, selection).to_rich())


def _table(scores: "ExpertScores", selection: "Selection") -> "Table":
    from moesaic.planner.table import Column, Row, Table

    chosen = selection.experts
    held, experts = max(map(len, chosen.values())), len(next(iter(scores.token.values())))
    token, gate = (scores.covered(kind, chosen) for kind in ("token", "gate"))
    rows = [
        Row({"layer": i, "best": _best(scores, i, ids), "token": token[i], "gate": gate[i]})
        for i, ids in chosen.items()
    ]
    mean = {"token": sum(token.values()) / len(token), "gate": sum(gate.values()) / len(gate)}
    return Table(
        key="layers",
        title=f"{held} of {experts} experts per layer, scored on {count(scores.tokens)} tokens "
        f"| loss {scores.loss:.4f}",
        columns=(
            Column("layer", "layer"),
            Column("best", "best experts, and their share of the choices", left=True),
            Column("token", f"choices\n{held} cover", "{:.1%}".format),
            Column("gate", f"gate values\n{held} cover", "{:.1%}".format),
        ),
        rows=(*rows, Row({"layer": "mean", **mean}, strong=True)),
    )


def _best(scores: "ExpertScores", layer: int, ids: "Sequence[int]") -> str:
    shown = [f"{expert} ({scores.token[layer][expert]:.1%})" for expert in ids[:_SHOWN]]
    return ", ".join([*shown, "…"] if len(ids) > _SHOWN else shown)
