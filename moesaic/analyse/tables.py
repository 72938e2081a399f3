"""A CSV file for every figure of ``routing.json``."""

import csv
from collections.abc import Iterable, Iterator
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any

from moesaic.checkpoint.atomic import new_file

Row = tuple[Any, ...]


def write_tables(values: dict[str, Any], folder: Path) -> None:
    """Write a file for each figure that is there."""
    for name, rows in tables(values).items():
        text = StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        with new_file(folder / f"{name}.csv") as file:
            file.write(text.getvalue().encode())


def tables(values: dict[str, Any]) -> dict[str, list[Row]]:
    """Figure → its rows, the first of which names the columns."""
    made = {
        "loads": _loads,
        "specialisation": _specialisation,
        "overlap": _overlap,
        "coactivation": _coactivation,
        "drift": _drift,
        "ablation": _ablation,
    }
    present = {name: make for name, make in made.items() if values.get(name) is not None}
    return {name: list(make(values)) for name, make in present.items()}


def _loads(values: dict[str, Any]) -> Iterator[Row]:
    columns = ("choices", "first", "gate")
    yield ("domain", "layer", "expert", *columns)
    for domain, found in values["loads"].items():
        for place, layer in enumerate(values["layers"]):
            rows = zip(*(found[column][place] for column in columns), strict=True)
            yield from ((domain, layer, expert, *row) for expert, row in enumerate(rows))


def _specialisation(values: dict[str, Any]) -> Iterator[Row]:
    yield ("layer", "expert", "specialisation", "favourite")
    found = values["specialisation"]
    for place, layer in enumerate(values["layers"]):
        pairs = zip(found["experts"][place], found["favourite"][place], strict=True)
        for expert, (share, best) in enumerate(pairs):
            yield layer, expert, share, None if best is None else found["domains"][best]


def _overlap(values: dict[str, Any]) -> Iterator[Row]:
    found = values["overlap"]
    yield ("layer", "domain", "other", *found["layers"])
    places = range(len(found["domains"]))
    for place, layer in enumerate(values["layers"]):
        for i, j in product(places, repeat=2):
            measures = (of[place][i][j] for of in found["layers"].values())
            yield layer, found["domains"][i], found["domains"][j], *measures


def _coactivation(values: dict[str, Any]) -> Iterator[Row]:
    yield ("layer", "expert", "other", "tokens", "given_first", "given_second", "lift")
    for layer, found in zip(values["layers"], values["coactivation"]["layers"], strict=True):
        for pair in found["pairs"]:
            rest = (pair[name] for name in ("tokens", "given_first", "given_second", "lift"))
            yield layer, *pair["experts"], *rest


def _drift(values: dict[str, Any]) -> Iterator[Row]:
    found = values["drift"]
    columns = ("first", "choices", "tokens", "divergence")
    yield ("domain", "layer", *columns)
    for domain, of in found["domains"].items():
        rows = zip(found["layers"], *(of[column] for column in columns), strict=True)
        yield from ((domain, *row) for row in rows)


def _ablation(values: dict[str, Any]) -> Iterator[Row]:
    told = ("experts", "ratio", "chosen", "shared")
    losses = ("loss", "stderr", "rise", "rise_stderr")
    yield ("checkpoint", "experiment", "domain", *told, *losses)
    for which, experiment in product(("model", "against"), ("shared", "disabled", "chosen")):
        found = values["ablation"][which] or {}
        for point in found.get(experiment, ()):
            parts: Iterable[tuple[str, Any]] = [("all", point), *point["domains"].items()]
            for domain, of in parts:
                what = (point[name] for name in told)
                yield which, experiment, domain, *what, *(of[name] for name in losses)
