"""`Memory`: a size in a setting, as a number of bytes or as text like ``8GiB``."""

from typing import Annotated, Any

from pydantic import BeforeValidator, PositiveInt

from moesaic.errors import ConfigError
from moesaic.units import parse_bytes


def _bytes(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse_bytes(value)
    except ConfigError as error:
        raise ValueError(str(error)) from None


Memory = Annotated[PositiveInt, BeforeValidator(_bytes)]
"""Bytes."""
