"""``moesaic report``: one page that says what runs did, to read, to keep and to print."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moesaic.report.page import Page
    from moesaic.report.sources import Sources

_PORT = 8765


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN…",
            help="Folders of runs, evaluations, routing analyses or merged checkpoints, or "
            "folders that hold some; or a result file.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The page; report.html beside the first run if left out.", metavar="FILE"
        ),
    ] = None,
    live: Annotated[
        bool,
        typer.Option("--live", help="Serve the page to this machine while runs are going."),
    ] = False,
    port: Annotated[int, typer.Option(help="Where --live serves it; 0 takes a free one.")] = _PORT,
    json: Annotated[
        bool, typer.Option("--json", help="Print the verdict and what is shown as JSON.")
    ] = False,
) -> None:
    """Write one HTML page about runs: did it help, by how much, how sure; and everything behind it.

    The page needs no network and no other file: charts, data and run files are in it. With --live
    it is served at http://127.0.0.1 and renewed every few seconds until Ctrl-C.

    Every folder is searched for record.jsonl (a run), results.json (an evaluation), routing.json,
    merge.json and scores.json; so moesaic report runs/demo shows all of the demo.
    """
    if live:
        _serve(paths, port)
    else:
        _write(paths, out, json)


def _write(paths: "Sequence[Path]", out: Path | None, as_json: bool) -> None:
    from datetime import datetime

    from moesaic.checkpoint.atomic import new_file
    from moesaic.report.page import make_page, render
    from moesaic.report.read import read_sources

    sources = read_sources(paths)
    page = make_page(sources, _title(paths))
    html = render(page, datetime.now()).encode()
    out = out or _beside(paths[0])
    with new_file(out) as file:
        file.write(html)
    if as_json:
        _print_json(out, page, sources)
        return
    for line in page.told():
        print(line)
    for line in sources.not_shown:
        print(f"not shown: {line}")
    print(f"{out} | {len(html) / 1000:.0f} kB | {page.subtitle}")


def _print_json(out: Path, page: "Page", sources: "Sources") -> None:
    import json

    found = {
        "page": str(out),
        "verdict": page.told(),
        "shown": sources.shown,
        "not_shown": sources.not_shown,
    }
    print(json.dumps(found, indent=2, ensure_ascii=False))


def _serve(paths: "Sequence[Path]", port: int) -> None:
    from moesaic.report.live import Server, Watched

    watched = Watched(paths, _title(paths))
    watched.page()  # what is wrong with the request is said here
    with Server(watched, port) as server:
        print(f"{server.address} | Ctrl-C ends", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def _title(paths: "Sequence[Path]") -> str:
    from moesaic.report.page import title_of

    return title_of(
        [path.resolve().stem if path.is_file() else path.resolve().name for path in paths]
    )


def _beside(path: Path) -> Path:
    """``report.html`` in a folder, or beside a file."""
    return (path.parent if path.is_file() else path) / "report.html"
