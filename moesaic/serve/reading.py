"""What comes in: who asks, and the JSON of a request, in bounded size and time."""

import asyncio
import json
from collections.abc import Sequence
from hashlib import sha256
from hmac import compare_digest
from http import HTTPStatus
from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect

from moesaic.config.serve import ServeConfig
from moesaic.serve.errors import RefusedError


def check_key(request: Request, config: ServeConfig) -> None:
    """See that a request has a key, if keys are asked for.

    Raises:
        RefusedError: if it has none of them.
    """
    if config.api_keys and not _has_one_of(request, (*config.api_keys, *config.admin_keys)):
        raise RefusedError(
            HTTPStatus.UNAUTHORIZED,
            "the API key is missing or wrong; send it as Authorization: Bearer KEY",
            code="invalid_api_key",
        )


def check_admin_key(request: Request, config: ServeConfig) -> None:
    """See that a request may change what is served.

    Raises:
        RefusedError: if it has no key for that, or there are none.
    """
    if not config.admin_keys:
        raise RefusedError(
            HTTPStatus.FORBIDDEN,
            "this server lets nobody load or unload shards; start it with admin_keys and "
            "shards_folder",
            code="not_allowed",
        )
    if not _has_one_of(request, config.admin_keys):
        raise RefusedError(
            HTTPStatus.UNAUTHORIZED,
            "the admin key is missing or wrong; send it as Authorization: Bearer KEY",
            code="invalid_api_key",
        )


def _has_one_of(request: Request, keys: Sequence[str]) -> bool:
    """Whether a request carries one of some keys; how long that takes does not tell which, nor how
    much of one was right."""
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    found = [compare_digest(_hashed(given), _hashed(key)) for key in keys]  # all of them
    return any(found)


def _hashed(key: str) -> bytes:
    """Of one length, whatever the key's."""
    return sha256(key.encode(errors="surrogateescape")).digest()


async def read_json(request: Request, config: ServeConfig) -> dict[str, Any]:
    """The object that a request carries.

    Raises:
        RefusedError: if it is too large, too slow, cut off, or no JSON object.
    """
    try:
        async with asyncio.timeout(config.arrival_s):
            body = await _read_body(request, config.max_body_bytes)
    except TimeoutError:
        raise RefusedError(
            HTTPStatus.REQUEST_TIMEOUT,
            f"the request was not here within {config.arrival_s:g} s; send it again",
        ) from None
    except ClientDisconnect:  # nobody reads this, and it is no failure to be logged
        raise RefusedError(HTTPStatus.BAD_REQUEST, "the client left within its request") from None
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(
            HTTPStatus.BAD_REQUEST, f"the body is not JSON ({error}); correct it"
        ) from None
    if not isinstance(data, dict):
        raise RefusedError(
            HTTPStatus.BAD_REQUEST, f"the body is a {type(data).__name__}; send a JSON object"
        )
    return data


async def _read_body(request: Request, most: int) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body has more than {most} bytes; shorten the prompt, or start the server "
                "with a larger max_body_bytes",
            )
    return bytes(body)
