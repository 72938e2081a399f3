"""``moesaic serve``: a checkpoint folder behind an OpenAI-compatible server."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesaic.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from moesaic.serve.run import Server

_HOST, _PORT = "127.0.0.1", 8000
_LOCAL = frozenset({_HOST, "localhost", "::1"})


def serve(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint folder.")],
    host: Annotated[
        str, typer.Option(help="Where to listen; 0.0.0.0 lets other machines in.")
    ] = _HOST,
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = _PORT,
    shards: Annotated[
        list[str] | None,
        typer.Option(
            "--shard", help="Serve this shard of the model beside it.", metavar="NAME=DIR"
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Serve otherwise, as max_running=8.", metavar="NAME=VALUE"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the address and the settings as JSON.")
    ] = False,
) -> None:
    """Answer requests in the forms of the OpenAI API, many at once, until Ctrl-C.

    Any client of that API works: give it the printed address as its base URL and the
    folder's name as the model. The address without /v1 is a page to chat in a browser.
    /v1/chat/completions and /v1/completions answer, with stream=true piece by piece and with
    response_format in JSON by a schema; /v1/embeddings embeds, /v1/models lists, /health
    answers while the server is up, /metrics has figures for Prometheus.

    A shard that was trained from the folder answers as the merged checkpoint would, to
    requests for the model FOLDER+NAME; only the weights it changes are held twice. With
    admin_keys='["KEY"]', shards_folder and spare_experts, POST /v1/shards loads
    {"name": NAME, "folder": DIR} and DELETE /v1/shards/NAME unloads it while others are
    answered.

    Settings of --set: cache_tokens, max_running, max_queue, prefill_tokens, deterministic,
    speculate (auto, always or never: the model's prediction module, if it has one, drafts
    tokens; no answer is another for it, and auto measures whether it is sooner there),
    chat_template (deepseek-v2, deepseek-v3 or deepseek-r1, where the folder has none),
    timeout_s, arrival_s, unread_s (what a client may let the server wait for its request, and
    for taking its answer), closing_s, max_new_tokens, max_choices, max_body_bytes, dtype,
    device, form (on a CPU; lossless: the same weights in three quarters of the memory; int8 or
    int4: rounded ones in less), memory (most bytes of weights, as 8GiB: experts that do not
    fit are read when they are chosen), trusted (keys that must have signed shards), and
    api_keys='["KEY"]', without which everybody who reaches the port is answered.
    """
    from moesaic.config.load import parse_changes
    from moesaic.config.serve import ServeConfig
    from moesaic.kernels.allocator import keep_freed_memory

    config = parse_changes(ServeConfig, changes or [])
    if config.memory is None and config.device != "cuda":
        keep_freed_memory()
    beside = _named(shards or [])
    try:
        from moesaic.serve.load import load_served
        from moesaic.serve.run import Server, open_port
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"serving needs {error.name}; install it with: pip install 'moesaic[serve]'"
        ) from None
    open_port(host, port).close()  # what is wrong with it is told before the model is loaded
    served = load_served(folder, config, beside)
    try:
        server = Server(served, host, port)
    except RequestError:
        served.engine.close(0)
        raise
    if host not in _LOCAL and not config.api_keys:
        print("moesaic: no api_keys: whoever reaches the port is answered", file=sys.stderr)
    print(json.dumps(_told(server)) if as_json else _line(server), flush=True)
    try:
        server.run()
    except KeyboardInterrupt:
        print(file=sys.stderr)


def _named(shards: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for shard in shards:
        name, equals, folder = shard.partition("=")
        if not (name and equals and folder):
            raise ConfigError(f"--shard {shard}: not a name and a folder; write it as NAME=DIR")
        if name in found:
            raise ConfigError(f"--shard {shard}: the name is given twice; give another")
        found[name] = Path(folder)
    return found


def _told(server: "Server") -> dict[str, Any]:
    settings = server.served.config.model_dump(exclude={"api_keys", "admin_keys"})
    served = server.served
    shards = () if served.shards is None else served.shards.names
    url = f"{server.address}/v1"
    return {"url": url, "model": served.name, "shards": list(shards), "settings": settings}


def _line(server: "Server") -> str:
    from moesaic.units import gib

    served = server.served
    room, positions = served.engine.cache_bytes, served.config.cache_tokens
    return (
        f"{server.address}/v1 | chat page {server.address} | model {', '.join(served.names)} | "
        f"{positions} positions cached in {gib(room)} | Ctrl-C ends"
    )
