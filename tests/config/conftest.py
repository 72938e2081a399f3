"""Published forms of the small models, to be changed one key at a time."""

from collections.abc import Callable
from typing import Any

import pytest

from moesaic.config.model import ModelConfig
from moesaic.config.published import published_config

Publish = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def publish(tiny_config: Callable[..., ModelConfig]) -> Publish:
    """``publish("v1" | "v2" | "v3", **changes)``: a ``config.json``, with some keys changed."""

    def build(family: str, **changes: Any) -> dict[str, Any]:
        return {**published_config(tiny_config(family), "bfloat16"), **changes}

    return build
