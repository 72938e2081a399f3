"""`Settings`: strict and frozen; errors name the key, its value, the rule and the fix."""

from collections.abc import Mapping, Sequence
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from moesaic.errors import ConfigError, suggest


class Settings(BaseModel):
    """A group of settings. Unknown keys, wrong types and contradictions are errors.

    Build one from outside data with `parse`, which raises `ConfigError`; the plain constructor
    raises pydantic's ``ValidationError`` and is for values the program chose itself.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
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
            lines = [prefix + line for line in _explain(cls, error)]
            raise ConfigError("\n".join(lines)) from None

    def changed(self, **values: Any) -> Self:
        """The same settings with some values replaced, checked again."""
        return self.parse({**self.model_dump(), **values})


def _explain(cls: type[Settings], error: ValidationError) -> list[str]:
    """One sentence per setting that is wrong."""
    problems: dict[str, list[Any]] = {}
    for problem in error.errors():
        problems.setdefault(_key(cls, problem), []).append(problem)
    return [
        _sentence(cls, key, same)
        for key, same in problems.items()
        if not any(other.startswith(f"{key}.") for other in problems)  # which says it closer
    ]


def _key(cls: type[Settings], problem: Any) -> str:
    """The setting's name as it is written, without pydantic's tags for the parts of a union."""
    *path, last = problem["loc"] or ("",)
    kept = [part for i, part in enumerate(path) if _is_written(cls, path[:i], part)]
    if problem["type"] == "extra_forbidden" or _is_written(cls, path, last):
        kept.append(last)
    return ".".join(str(part) for part in kept)


def _is_written(cls: type[Settings], path: list[str | int], part: str | int) -> bool:
    return isinstance(part, int) or part in _fields_at(cls, path)


def _sentence(cls: type[Settings], key: str, problems: list[Any]) -> str:
    """The key, its value, the rule, the nearest valid name."""
    kind, value, context = problems[0]["type"], problems[0]["input"], problems[0].get("ctx", {})
    if kind == "extra_forbidden":
        parent, _, name = key.rpartition(".")
        hint = suggest(name, _fields_at(cls, problems[0]["loc"][:-1]))
        if hint and parent:
            hint = hint.replace("mean '", f"mean '{parent}.")
        return f"{key} is not a setting{hint or '; remove it'}"
    if kind == "missing":
        return f"{key} is missing; give it a value"
    if kind == "value_error":  # of one setting, of a group of settings, or of all of them
        shown = f"{key}: " if isinstance(value, Mapping) else f"{key}={value!r}: "
        return f"{shown if key else ''}{context['error']}"
    if kind in ("literal_error", "enum"):
        hint = suggest(str(value), context["expected"].split("'")[1::2])
        return f"{key}={value!r} is not one of {context['expected']}{hint}"
    rules = [_rule(problem) for problem in problems]
    return f"{key}={value!r} is not allowed; it should be {' or '.join(dict.fromkeys(rules))}"


def _rule(problem: Any) -> str:
    """What a value should be."""
    if problem["type"] == "tuple_type":
        return """a list, as ["a", "b"] (within single quotes where a shell reads it)"""
    return problem["msg"].removeprefix("Input should be ")


def _fields_at(cls: type[Settings], path: Sequence[str | int]) -> list[str]:
    """Names of the settings of the group, or groups of a union, that ``path`` leads to."""
    groups: list[type[BaseModel]] = [cls]
    for part in path:
        fields = [group.model_fields.get(str(part)) for group in groups]
        kinds = [kind for field in fields if field for kind in _kinds(field.annotation)]
        if any(fields):  # else the index of a list, or the tag of a union
            groups = [kind for kind in kinds if issubclass(kind, BaseModel)]
    return [name for group in groups for name in group.model_fields]


def _kinds(annotation: Any) -> list[type]:
    """Every class named in a type annotation."""
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in _kinds(part)]
