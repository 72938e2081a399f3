"""The paths that change what is served: shards, loaded and unloaded by name."""

import asyncio
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request

from moesaic.config.serve import ServeConfig
from moesaic.config.settings import Settings
from moesaic.serve.errors import RefusedError
from moesaic.serve.reading import check_admin_key, read_json
from moesaic.serve.served import Served
from moesaic.serve.shards import Shards


class ShardForm(Settings):
    """``POST /v1/shards``."""

    name: str
    """What requests call it, after the base's name and a plus sign."""
    folder: str
    """Where it lies in ``shards_folder``."""


def add_shard_paths(app: FastAPI, served: Served) -> None:
    """``POST /v1/shards`` and ``DELETE /v1/shards/NAME``, for those with an admin key."""

    async def with_key(request: Request) -> None:
        check_admin_key(request, served.config)

    guarded = [Depends(with_key)]

    @app.post("/v1/shards", dependencies=guarded)
    async def load(request: Request) -> dict[str, Any]:
        form = ShardForm.parse(await read_json(request, served.config))
        folder = _folder(served.config, form.folder)
        loaded = await asyncio.to_thread(_shards(served).load, form.name, folder)
        return served.card(loaded)

    @app.delete("/v1/shards/{name}", dependencies=guarded)
    async def unload(name: str) -> dict[str, Any]:
        await asyncio.to_thread(_shards(served).unload, name)
        return {"id": f"{served.name}+{name}", "object": "model", "deleted": True}


def _shards(served: Served) -> Shards:
    assert served.shards is not None, "a server with admin keys has room for shards"
    return served.shards


def _folder(config: ServeConfig, name: str) -> Path:
    """A folder in the one that shards may come from.

    Raises:
        RefusedError: if it lies elsewhere.
    """
    assert config.shards_folder is not None
    root = Path(config.shards_folder).resolve()
    try:
        folder = (root / name).resolve()
    except (OSError, RuntimeError, ValueError):  # too long, links in a circle, or a null byte
        folder = None
    if folder is None or root not in folder.parents:
        raise RefusedError(
            HTTPStatus.BAD_REQUEST,
            f"folder={name!r} is not in the folder that shards are loaded from; name one there",
        )
    return folder
