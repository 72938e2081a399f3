"""``moesaic demo``: the main job from beginning to end, on real text, on this machine."""

import sys
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from moesaic.units import count, duration

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from moesaic.analyse.sources import Source
    from moesaic.config.train import TrainConfig
    from moesaic.esft.select import Selection
    from moesaic.planner.table import Table

    Domains = Mapping[str, Mapping[str, Any]]

_Done = TypeVar("_Done")

_PROMPTS = ("The old man looked at the sea and", "Anna has 3 apples and buys")
_NEW_TOKENS = 48
_WIDTH = 100
_TOKENS = 16_384
"""Held-out tokens of each domain that models are compared on."""


def demo(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where everything is kept.")] = Path(
        "runs/demo"
    ),
    steps: Annotated[
        int | None, typer.Option(help="Steps of each training, for a shorter look.")
    ] = None,
) -> None:
    """Pretrain a small mixture of experts, fine-tune eight experts per layer, merge, compare.

    English novels and plays first, then maths word problems, all from the corpus that ships with
    moesaic; at the end a report says whether it helped, and how sure that is. Offline; about five
    minutes on two CPU cores. The same command goes on where it was stopped.
    """
    import time

    from moesaic.kernels.allocator import keep_freed_memory
    from moesaic.train.interrupt import stop_on_signal

    started = time.monotonic()
    keep_freed_memory()
    with stop_on_signal() as stop:
        _Demo(folder, steps, stop).run()
    print(f"\n{duration(time.monotonic() - started)} in all. Next: moesaic --help")


@dataclass(frozen=True, slots=True)
class _Demo:
    """The job's parts, each of which says what it does as a command a person could give."""

    folder: Path
    steps: int | None
    stop: "Callable[[], bool]"

    def run(self) -> None:
        """All of it."""
        from moesaic.esft.recipe import train_slice
        from moesaic.train.loop import train
        from moesaic.train.progress import display

        base, merged = self.folder / "base" / "model", self.folder / "merged"
        precision = _faster_precision()
        self._announce(1, "Pretrain on English novels and Shakespeare's plays")
        pretraining = self._config("demo_base", self.folder / "base", precision=precision)
        with display(sys.stderr) as shown:
            self._finish(train(pretraining, stop=self.stop, display=shown))
        self._announce(2, "Fine-tune 8 of 64 experts per layer on maths, the others parked on disk")
        tuning = self._config(
            "demo_slice", self.folder / "slice", precision=precision, model=str(base)
        )
        with display(sys.stderr) as shown:
            result = train_slice(tuning, stop=self.stop, display=shown)
            self._finish(result.training)
        self._announce(3, "Merge the slice into its base")
        shard = self.folder / "slice" / "shard"
        self._merge(base, shard, merged)
        self._announce(4, "Compare on held-out text, and see what became of the routing")
        domains = self._look(tuning, base, merged)
        alone = _losses_alone(tuning, merged, result.selection)
        _print_table(_comparison(domains, alone))
        self._announce(5, "Write with the merged model")
        self._command(f"moesaic generate {merged} {_PROMPTS[0]!r}")
        _print_samples(merged)
        self._announce(6, "Report, and look at the files")
        self._report()
        for path, what in (
            (base, "the pretrained model, in the published layout"),
            (shard, "the trained experts, with a manifest"),
            (merged, "the merged model; merge.json says what came from where"),
            (self.folder / "base" / "record.jsonl", "every step of the pretraining"),
            (self.folder / "report.html", "everything on one page; open it in a browser"),
        ):
            print(f"   {path!s:<32} {what}")

    def _config(self, recipe: str, folder: Path, **settings: str) -> "TrainConfig":
        """A shipped run file with what this run decides."""
        from moesaic.config.load import read_run_file
        from moesaic.config.train import TrainConfig

        steps = {} if self.steps is None else {"steps": str(self.steps)}
        changes = [
            f"{key}={value}" for key, value in {"folder": folder, **settings, **steps}.items()
        ]
        with as_file(files("moesaic.recipes") / f"{recipe}.toml") as path:
            self._command(" --set ".join([f"moesaic train {_short(path)}", *changes]))
            return read_run_file(TrainConfig, path, changes)

    def _merge(self, base: Path, shard: Path, merged: Path) -> None:
        from moesaic.esft.merge import merge_shards

        self._command(f"moesaic merge {base} {shard} --out {merged}")
        if not merged.exists():
            merge_shards(base, [shard], merged)

    def _look(self, config: "TrainConfig", base: Path, merged: Path) -> "Domains":
        """Loss and routing of the merged model and of its base, on the same tokens."""
        from moesaic.analyse.routing import study_routing
        from moesaic.config.analyse import RoutingConfig

        out, sources = self.folder / "routing", _sources(config)
        named = " ".join(f"--data {source.name}={source.place}" for source in sources)
        asked = {
            "seq_len": config.data.seq_len,
            "tokens": _TOKENS,
            "resident": str(self.folder / "slice" / "shard"),
        }
        settings = " ".join(f"--set {name}={value}" for name, value in asked.items())
        self._command(f"moesaic routing {merged} {named} --against {base} --out {out} {settings}")
        found = study_routing(merged, sources, RoutingConfig.parse(asked), against=base)
        found.save(out)
        return found.values["domains"]

    def _report(self) -> None:
        """What ``moesaic report`` writes and says."""
        from datetime import datetime

        from moesaic.report.page import make_page, render
        from moesaic.report.read import read_sources

        self._command(f"moesaic report {self.folder}")
        page = make_page(read_sources([self.folder]), "moesaic demo")
        (self.folder / "report.html").write_text(render(page, datetime.now()), encoding="utf-8")
        for line in page.told():
            print(fill(line, _WIDTH, initial_indent="   ", subsequent_indent="   "))

    def _finish(self, result: Any) -> None:
        if result.interrupted:
            print("moesaic: stopped, and saved; moesaic demo goes on from here", file=sys.stderr)
            raise typer.Exit(130)
        print(f"   {result.step} steps, {count(result.tokens)} tokens")

    def _announce(self, number: int, title: str) -> None:
        print(f"\n{number}. {title}", flush=True)

    def _command(self, command: str) -> None:
        print(f"   $ {command}", flush=True)


def _faster_precision() -> str:
    """``mixed`` where this machine multiplies bfloat16 faster than float32, as measured now."""
    import time

    import torch

    def seconds(dtype: torch.dtype) -> float:
        square = torch.ones(512, 512, dtype=dtype)
        times: list[float] = []
        for _ in range(5):
            started = time.perf_counter()
            torch.mm(square, square)
            times.append(time.perf_counter() - started)
        return min(times)

    if torch.cuda.is_available():
        return "mixed"
    return "mixed" if seconds(torch.bfloat16) < seconds(torch.float32) else "float32"


def _sources(config: "TrainConfig") -> "tuple[Source, ...]":
    """The domains that a run is evaluated on."""
    from moesaic.analyse.sources import Source

    assert config.evaluation is not None
    domains = config.evaluation.domains
    return tuple(Source(name, source.path) for name, source in domains.items())


def _losses_alone(
    config: "TrainConfig", merged: Path, selection: "Selection"
) -> "Mapping[str, float]":
    """Domain → loss of the slice by itself, on the tokens that `_Demo._look` reads."""
    from moesaic.data.tokenizer import Tokenizer
    from moesaic.esft.park import load_slice
    from moesaic.train.evaluate import HeldOut, evaluate

    model, tokenizer = load_slice(merged, selection), Tokenizer.load(merged)
    return {
        source.name: evaluate(model, HeldOut(tuple(batches), n_bytes=0)).loss
        for source in _sources(config)
        for batches in [source.batches(tokenizer, config.data.seq_len, _TOKENS)]
    }


def _comparison(domains: "Domains", alone: "Mapping[str, float]") -> "Table":
    from moesaic.planner.table import Column, Row, Table

    losses: dict[str, dict[str, float | str]] = {
        "before": {name: one["against"]["loss"] for name, one in domains.items()},
        "slice alone": dict(alone),
        "merged": {name: one["loss"] for name, one in domains.items()},
        "change": {name: _change(**one["against"]) for name, one in domains.items()},
    }
    return Table(
        key="held_out",
        title="held-out loss, nats per token",
        columns=(
            Column("model", "", left=True),
            *(Column(name, name, _cell) for name in domains),
        ),
        rows=tuple(Row({"model": model, **found}) for model, found in losses.items()),
        note="slice alone: the router may choose the eight trained experts only, as in training\n"
        "merged: the trained experts back among all the others, chosen freely\n"
        "change: merged less before, ± 95 %, over the same tokens",
    )


def _change(rise: float, rise_stderr: float | None, batches: int, **_: float) -> str:
    from moesaic.report.estimate import around
    from moesaic.report.words import plus_minus

    return plus_minus(around(rise, rise_stderr, batches), is_signed=True)


def _cell(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4f}"


def _print_table(table: "Table") -> None:
    from rich.console import Console
    from rich.padding import Padding

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH)
    console.print(Padding(table.to_rich(), (0, 0, 0, 3)))


def _print_samples(folder: Path) -> None:
    from moesaic.data.tokenizer import Tokenizer
    from moesaic.infer.generate import generate
    from moesaic.model.build import load_model

    tokenizer = Tokenizer.load(folder)
    written = generate(load_model(folder), _PROMPTS, tokenizer, max_new_tokens=_NEW_TOKENS)
    for prompt, found in zip(_PROMPTS, written, strict=True):
        print("   " + (prompt + found.text).replace("\n", "\n   "))


def _short(path: Path) -> str:
    """The path from here where it lies below, else whole."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
