"""Settings as TOML, the form of a run file; what is absent is left out."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def write_toml(settings: Mapping[str, Any]) -> str:
    """A document that reads back as the same settings, without those that are None."""
    lines = _table(_present(settings), ())
    return "\n".join(lines).strip() + "\n"


def _present(value: Any) -> Any:
    """The value without anything that is None."""
    if isinstance(value, Mapping):
        kept = {key: _present(part) for key, part in value.items() if part is not None}
        return {str(key): part for key, part in kept.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_present(part) for part in value if part is not None]
    return value


def _table(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    """Plain values first, then a table of its own for every mapping."""
    nested = {key: value for key, value in table.items() if isinstance(value, Mapping) and value}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in table.items() if key not in nested]
    if path and (lines or not nested):
        lines.insert(0, f"[{'.'.join(map(_key, path))}]")
    for key, value in nested.items():
        below = _table(value, (*path, key))
        lines += ["", *below] if below and below[0] else below
    return lines


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _text(key)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(key)} = {_value(part)}" for key, part in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Sequence):
        return f"[{', '.join(_value(part) for part in value)}]"
    return repr(value)


def _text(text: str) -> str:
    """A basic string: JSON's, with the one further character that TOML wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
