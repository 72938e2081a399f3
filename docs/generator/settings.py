"""The page of settings, from the classes that read them."""

import importlib
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import moesaic.config
from docs.generator.text import cell, prose, table
from moesaic.config.settings import Settings
from moesaic.config.toml import write_toml

_FIRST = (
    "train",
    "data",
    "schedule",
    "balance",
    "esft",
    "lora",
    "merge",
    "eval",
    "analyse",
    "infer",
    "card",
    "model",
)
_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "text",
    Any: "anything",
}
_SIGNS = {
    annotated_types.Gt: ("gt", ">"),
    annotated_types.Ge: ("ge", "≥"),
    annotated_types.Lt: ("lt", "<"),
    annotated_types.Le: ("le", "≤"),
}


def groups() -> list[type[Settings]]:
    """Every class of settings in a file of `moesaic.config`, those of a run file first."""
    folder = Path(moesaic.config.__file__).parent
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    order = [*(name for name in _FIRST if name in names), *(n for n in names if n not in _FIRST)]
    found: list[type[Settings]] = []
    for name in order:
        module = importlib.import_module(f"moesaic.config.{name}")
        own = [
            value
            for value in vars(module).values()
            if isinstance(value, type)
            and issubclass(value, Settings)
            and value.__module__ == module.__name__
            and value is not Settings
        ]
        found += reversed(own)
    return found


def settings() -> str:
    """The page."""
    lines = [
        "# Settings",
        "",
        "A run file is TOML with the names of `TrainConfig`; a field that is itself a group of "
        "settings is a table. `--set a.b=value` replaces one on the command line, with the value "
        "written as in TOML. An unknown name, a wrong type and a contradiction are errors that "
        "say what to do. None stands for a setting that is left out.",
    ]
    for group in groups():
        lines += ["", f"## {group.__name__}", "", prose(_own_doc(group)), ""]
        rows = [
            (f"`{name}`", _kind(field.annotation, field.metadata), _default(field), _meaning(field))
            for name, field in group.model_fields.items()
        ]
        lines.append(table(("setting", "value", "if left out", "meaning"), rows))
    return "\n".join(lines) + "\n"


def _own_doc(group: type[Settings]) -> str:
    return group.__doc__ or ""


def _meaning(field: FieldInfo) -> str:
    return cell(field.description or "")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "an error"
    value = field.default
    if isinstance(value, Settings):
        value = value.model_dump(mode="json", exclude_defaults=True) or None
    return "–" if value is None or value is PydanticUndefined else f"`{written(value)}`"


def written(value: Any) -> str:
    """A value as TOML."""
    return write_toml({"value": [value]}).removeprefix("value = [").strip().removesuffix("]")


def _kind(annotation: Any, limits: Any = ()) -> str:
    """What may be written for a type."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(parts[0], parts[1:])
    if origin is Literal:
        return ", ".join(f"`{written(part)}`" for part in parts)
    if origin in (Union, UnionType):
        kinds = [_kind(part, limits) for part in parts if part is not NoneType]
        return " or ".join(dict.fromkeys(kinds))
    if origin in (tuple, list):
        inner = [part for part in parts if part is not Ellipsis]
        return "list of " + " and ".join(dict.fromkeys(_kind(part) for part in inner))
    if origin is dict:
        return f"table of {_kind(parts[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return f"[table](#{annotation.__name__.lower()})"
    return _WORDS.get(annotation, str(annotation)) + _limits(limits)


def _limits(limits: Any) -> str:
    said = [
        f"{sign} {getattr(limit, name):g}"
        for limit in limits
        for kind, (name, sign) in _SIGNS.items()
        if isinstance(limit, kind)
    ]
    return f" {' and '.join(said)}" if said else ""
