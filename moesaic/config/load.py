"""A run file (TOML) and the changes of the command line, as validated settings."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from moesaic.config.settings import Settings
from moesaic.errors import ConfigError

_Settings = TypeVar("_Settings", bound=Settings)


def read_run_file(
    kind: type[_Settings], path: Path | str, changes: Sequence[str] = ()
) -> _Settings:
    """The settings in a run file.

    Args:
        kind: what the file should hold.
        path: the file.
        changes: texts like ``schedule.warmup_steps=50``, applied in order. The value is written as
            in TOML; a word that is not TOML is text.

    Raises:
        ConfigError: if the file is missing or not TOML, or a setting is unknown or wrong.
    """
    path = Path(path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(
            f"{path} is not a file; give a run file, like moesaic/recipes/tiny.toml"
        ) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}; correct the file") from None
    for change in changes:
        _apply(data, change)
    return kind.parse(data, str(path))


def parse_changes(kind: type[_Settings], changes: Sequence[str]) -> _Settings:
    """The default settings with such changes, where there is no run file.

    Raises:
        ConfigError: if a setting is unknown or wrong.
    """
    data: dict[str, Any] = {}
    for change in changes:
        _apply(data, change)
    return kind.parse(data, "--set")


def _apply(data: dict[str, Any], change: str) -> None:
    """Set one value inside nested tables and lists."""
    key, equals, text = change.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        name = key.strip() if all(parts) else "a.b"
        raise ConfigError(f"--set {change}: not a setting and its value; write it as {name}=VALUE")
    place: Any = data
    for depth, part in enumerate(parts[:-1]):
        before = ".".join(parts[: depth + 1])
        if isinstance(place, list):
            place = place[_index(place, part, change)]
        else:
            place = place.setdefault(part, {})
        if not isinstance(place, dict | list):
            raise ConfigError(
                f"--set {change}: {before} is {place!r} and has no settings inside; "
                f"write {before}=… to replace it"
            )
    if isinstance(place, list):
        place[_index(place, parts[-1], change)] = _value(text)
    else:
        place[parts[-1]] = _value(text)


def _index(place: list[Any], part: str, change: str) -> int:
    if part.isdecimal() and int(part) < len(place):
        return int(part)
    raise ConfigError(
        f"--set {change}: {part!r} is no entry of a list of {len(place)}; entries are numbered "
        f"from 0 to {len(place) - 1}"
    )


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()
