"""`Settings`: strict and frozen; errors name the key, its value, the rule and the fix."""

from collections.abc import Mapping
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from moesaic.errors import ConfigError, suggest


class Settings(BaseModel):
    """A group of settings. Unknown keys, wrong types and contradictions are errors.

    Build one from outside data with `parse`, which raises `ConfigError`; the plain constructor
    raises pydantic's ``ValidationError`` and is for values the program chose itself.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )

    @classmethod
    def parse(cls, data: Mapping[str, Any], where: str = "") -> Self:
        """The settings in ``data``, a mapping read from JSON or TOML.

        Args:
            data: keys and values, nested as the settings are.
            where: the file they came from, put in front of the message.

        Raises:
            ConfigError: one line per mistake.
        """
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            prefix = f"{where}: " if where else ""
            lines = [prefix + _explain(cls, problem) for problem in error.errors()]
            raise ConfigError("\n".join(dict.fromkeys(lines))) from None

    def changed(self, **values: Any) -> Self:
        """The same settings with some values replaced, checked again."""
        return self.parse({**self.model_dump(), **values})


def _explain(cls: type[Settings], problem: Any) -> str:
    """One pydantic problem as a sentence: the key, its value, the rule, the nearest valid name."""
    path = [str(part) for part in problem["loc"]]
    key, kind, value = ".".join(path), problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        parent = ".".join(path[:-1])
        hint = suggest(path[-1], _fields_at(cls, path[:-1]))
        if hint and parent:
            hint = hint.replace("mean '", f"mean '{parent}.")
        return f"{key} is not a setting{hint or '; remove it'}"
    if kind == "missing":
        return f"{key} is missing; give it a value"
    if kind == "value_error":
        message = str(problem["ctx"]["error"])
        return f"{key}={value!r}: {message}" if key else message
    if kind in ("literal_error", "enum"):
        expected = problem["ctx"]["expected"]
        hint = suggest(str(value), [part.strip("' ") for part in expected.split("'")[1::2]])
        return f"{key}={value!r} is not one of {expected}{hint}"
    rule = problem["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"{key}={value!r} is not allowed; it should be {rule}"


def _fields_at(cls: type[Settings], path: list[str]) -> list[str]:
    """Names of the settings of the group that ``path`` leads to."""
    current: type[BaseModel] = cls
    for part in path:
        field = current.model_fields.get(part)
        if field is None:
            continue  # the index of a list, or the tag of a union
        groups = [kind for kind in _kinds(field.annotation) if issubclass(kind, BaseModel)]
        if groups:
            current = groups[0]
    return list(current.model_fields)


def _kinds(annotation: Any) -> list[type]:
    """Every class named in a type annotation."""
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in _kinds(part)]
