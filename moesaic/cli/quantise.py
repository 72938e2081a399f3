"""``moesaic quantise``: a checkpoint in fewer bits, and how far it is from the original."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

    from moesaic.checkpoint.load import Reader
    from moesaic.checkpoint.quantise import Form
    from moesaic.config.quantise import QuantiseConfig
    from moesaic.data.batch import Batch
    from moesaic.eval.accuracy import Agreement, LayerError
    from moesaic.eval.statistics import Estimate
    from moesaic.planner.table import Table

_SHOWN = 5
"""Layers that the table names."""
RECORD = "accuracy.json"


def quantise(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint folder.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to; new or empty.")],
    bits: Annotated[
        str, typer.Option(help="8 or 4 for integers, fp8 for the blocks DeepSeek publishes.")
    ] = "4",
    against_data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DATA",
            help="Compare with the original on a file, a pattern, or corpus:NAME; may be repeated.",
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Quantise otherwise, as group=32.", metavar="NAME=VALUE"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all numbers as JSON.")] = False,
) -> None:
    """Write a checkpoint with the linear layers of its blocks in 8 or 4 bits.

    Integers are symmetric, with a scale for every 64 weights of a row, in the layout of
    compressed-tensors that vLLM reads; fp8 is the form DeepSeek-V3 is published in. All other
    commands here read both. Routers, norms, embedding and head stay in bfloat16; in integers also
    kv_b_proj, and layers whose rows are not whole groups; a group that fits only some projections
    of experts is refused. One tensor is in memory at a time.

    With --against-data both models read some text, and the output shows how far the next-token
    distributions are apart, how often the first choice is the same, and what the loss became,
    with errors over rows of text; then the layers whose weights moved furthest. The same is
    written to accuracy.json in the new folder.

    Settings that --set changes: group (32, 64 or 128), and for the comparison tokens, row, hold
    (disk where the model is larger than the memory) and device.
    """
    from rich.console import Console
    from rich.progress import Progress

    from moesaic.checkpoint.load import Reader
    from moesaic.checkpoint.quantise import FORMS, quantise_folder
    from moesaic.config.load import parse_changes
    from moesaic.config.quantise import QuantiseConfig
    from moesaic.errors import ConfigError

    config = parse_changes(QuantiseConfig, changes or [])
    form = FORMS.get(bits)
    if form is None:
        raise ConfigError(f"--bits {bits} is not one of {', '.join(FORMS)}; choose one of them")
    batches = _batches(folder, against_data, config) if against_data else []
    source = Reader(folder)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("quantising", total=source.report.parameters)
        digest = quantise_folder(
            source, out, form, config.group, lambda spec: bar.advance(task, spec.size)
        )
        result = Reader(out)
        compared = _compare(source, result, batches, config, bar) if batches else None
    told = _as_json(source, result, digest, form, config, compared)
    if compared is not None:
        _write(out / RECORD, told)
    if as_json:
        print(json.dumps(told))
        return
    print(f"{result.report.text()}\ndigest {digest}")
    print(
        f"{told['quantised']} of {told['linear']} linear layers quantised | "
        f"{told['bytes'] / told['original_bytes']:.1%} of the original's bytes"
    )
    if compared is not None:
        _print(*compared)


def _batches(folder: Path, data: list[str], config: "QuantiseConfig") -> "list[Batch]":
    """As many rows as make up the tokens to compare on, read before anything is written."""
    from moesaic.config.data import DataConfig
    from moesaic.config.published import read_config
    from moesaic.data.loader import Loader
    from moesaic.data.tokenizer import Tokenizer

    seq_len = min(config.row, read_config(folder).max_position_embeddings)
    sources = [{"path": path, "split": "all"} for path in data]
    asked = DataConfig.parse({"sources": sources, "seq_len": seq_len, "epochs": 1})
    found: list[Batch] = []
    tokens = 0
    for batch in Loader(asked, Tokenizer.load(folder), 1):
        found.append(batch)
        tokens += int((batch.labels_BS >= 0).sum())
        if tokens >= config.tokens:
            break
    return found


def _compare(
    source: "Reader",
    result: "Reader",
    batches: "list[Batch]",
    config: "QuantiseConfig",
    bar: "Progress",
) -> "tuple[Agreement, list[LayerError]]":
    """One model in memory after the other."""
    from moesaic.esft.park import load_frozen
    from moesaic.eval.accuracy import compare_told, layer_errors, listen
    from moesaic.train.setup import choose_device

    task = bar.add_task("comparing weights", total=len(source.names))
    layers = layer_errors(source, result, lambda: bar.advance(task))
    task = bar.add_task("comparing answers", total=2 * len(batches))
    device = choose_device(config.device)
    original, quantised = (
        listen(
            load_frozen(reader, "float32", device, config.hold),
            batches,
            lambda: bar.advance(task),
        )
        for reader in (source, result)
    )
    return compare_told(original, quantised), layers


def _as_json(
    source: "Reader",
    result: "Reader",
    digest: str,
    form: "Form",
    config: "QuantiseConfig",
    compared: "tuple[Agreement, list[LayerError]] | None",
) -> dict[str, Any]:
    from dataclasses import asdict

    from moesaic.planner.inventory import tensors

    linear = [spec.name for spec in tensors(result.config) if spec.may_be_quantised]
    found: dict[str, Any] = {
        "kind": "quantisation",
        "folder": str(result.folder),
        "digest": digest,
        "bits": form,
        "group": None if form == "fp8" else config.group,
        "linear": len(linear),
        "quantised": sum(not result.locate(name).dtype.is_floating_point for name in linear)
        if form != "fp8"
        else len(linear),
        "bytes": result.report.n_bytes,
        "original": str(source.folder),
        "original_bytes": source.report.n_bytes,
    }
    if compared is not None:
        agreement, layers = compared
        found |= {"agreement": agreement.to_json(), "layers": [asdict(one) for one in layers]}
    return found


def _write(path: Path, told: dict[str, Any]) -> None:
    from moesaic.checkpoint.atomic import new_file

    with new_file(path) as file:
        file.write(json.dumps(told, indent=2).encode() + b"\n")


def _print(agreement: "Agreement", layers: "list[LayerError]") -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    console.print()
    console.print(_answers(agreement).to_rich())
    console.print()
    console.print(_layers(layers).to_rich())


def _answers(agreement: "Agreement") -> "Table":
    from moesaic.planner.table import Column, Row, Table

    def row(what: str, found: "Estimate", scale: float, form: str) -> Row:
        told = {"what": what, "value": form.format(scale * found.value)}
        if found.stderr is not None:
            told["stderr"] = "± " + form.replace("+", "").replace(" %", "").format(
                scale * found.stderr
            )
        return Row(told)

    return Table(
        key="agreement",
        title=f"beside the original | {agreement.tokens} tokens in {agreement.rows} rows | "
        f"its loss {agreement.original_loss:.4f}",
        columns=(
            Column("what", "per token", left=True),
            Column("value", "mean"),
            Column("stderr", "error"),
        ),
        rows=(
            row("KL(original ‖ quantised), nats", agreement.divergence, 1, "{:.5f}"),
            row("the same first choice", agreement.same_choice, 100, "{:.2f} %"),
            row("loss minus the original's", agreement.loss_change, 1, "{:+.5f}"),
        ),
        note="errors are over rows: how far other text of the kind would move a mean",
    )


def _layers(layers: "list[LayerError]") -> "Table":
    from moesaic.planner.table import Column, Row, Table

    return Table(
        key="layers",
        title="layers whose weights moved furthest, as a share of their length",
        columns=(
            Column("layer", "layer"),
            Column("error", "moved", "{:.3%}".format),
            Column("worst", "furthest of it", left=True),
            Column("worst_error", "moved", "{:.3%}".format),
        ),
        rows=tuple(
            Row(
                {
                    "layer": one.layer,
                    "error": one.error,
                    "worst": one.worst,
                    "worst_error": one.worst_error,
                }
            )
            for one in layers[:_SHOWN]
        ),
    )
