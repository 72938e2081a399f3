"""``moesaic serve``: a checkpoint folder behind an OpenAI-compatible server."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesaic.errors import ConfigError

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
    folder's name as the model. /v1/chat/completions and /v1/completions answer, with
    stream=true piece by piece; /v1/models lists, /health answers while the server is up,
    /metrics has figures for Prometheus.

    Settings of --set: cache_tokens, max_running, max_queue, prefill_tokens, deterministic,
    timeout_s, closing_s, max_new_tokens, max_choices, max_body_bytes, dtype, device, form
    (int8 or int4 on a CPU), and api_keys='["KEY"]', without which everybody who reaches
    the port is answered.
    """
    from moesaic.config.load import parse_changes
    from moesaic.config.serve import ServeConfig

    config = parse_changes(ServeConfig, changes or [])
    try:
        from moesaic.serve.run import Server
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"serving needs {error.name}; install it with: pip install 'moesaic[serve]'"
        ) from None
    server = Server.load(folder, config, host, port)
    if host not in _LOCAL and not config.api_keys:
        print("moesaic: no api_keys: whoever reaches the port is answered", file=sys.stderr)
    print(json.dumps(_told(server)) if as_json else _line(server), flush=True)
    try:
        server.run()
    except KeyboardInterrupt:
        print(file=sys.stderr)


def _told(server: "Server") -> dict[str, Any]:
    settings = server.served.config.model_dump(exclude={"api_keys"})
    return {"url": f"{server.address}/v1", "model": server.served.name, "settings": settings}


def _line(server: "Server") -> str:
    from moesaic.units import gib

    served = server.served
    room = served.engine.cache_bytes
    return (
        f"{server.address}/v1 | model {served.name} | {served.config.cache_tokens} positions "
        f"cached in {gib(room)} | Ctrl-C ends"
    )
