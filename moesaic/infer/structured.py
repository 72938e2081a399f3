"""What an answer has to be, by the names of vLLM's ``structured_outputs``."""

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from moesaic.errors import RequestError, suggest
from moesaic.infer.grammar import Grammar, Grammars

Fields = Mapping[str, Any]
"""A JSON object of a request."""

ANY_OBJECT = {"type": "object"}
"""A schema of any JSON object."""


def structured_grammar(asked: Fields, grammars: Callable[[], Grammars]) -> Grammar:
    """What a text has to be.

    Args:
        asked: one of ``json`` (a schema, or its text), ``json_object`` (true: any object),
            ``regex``, ``choice`` (a list of texts) and ``grammar`` (of Lark, or GBNF).
        grammars: those of the model, which are got only where they are needed.

    Raises:
        RequestError: if it is not one of these, or cannot be enforced.
    """
    kinds: dict[str, Callable[[Any], Grammar]] = {
        "json": lambda value: grammars().of_schema(read_schema(value)),
        "json_object": lambda value: grammars().of_schema(ANY_OBJECT),
        "regex": lambda value: grammars().of_regex(_text("regex", value)),
        "choice": lambda value: grammars().of_choice(_texts("choice", value)),
        "grammar": lambda value: grammars().of_grammar(_text("grammar", value)),
    }
    given = {key: value for key, value in asked.items() if value is not None}
    check_keys("structured_outputs", given, kinds)
    if len(given) != 1 or given.get("json_object") is False:
        raise RequestError(
            f"structured_outputs has {', '.join(given) or 'nothing'}; give one of "
            f"{', '.join(kinds)}"
        )
    [(kind, value)] = given.items()
    return kinds[kind](value)


def check_keys(where: str, given: Fields, known: Collection[str]) -> None:
    """See that an object has known keys alone.

    Raises:
        RequestError: if it has another.
    """
    for key in given:
        if key not in known:
            hint = suggest(key, known) or "; remove it"
            raise RequestError(f"{where}.{key} is not served{hint}")


def read_schema(value: Any) -> Fields:
    """A schema, or the text of one.

    Raises:
        RequestError: if it is neither.
    """
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the schema is not JSON ({error}); correct it") from None
    if not isinstance(found, dict):
        raise RequestError(f"the schema is a {type(found).__name__}; it should be an object")
    return found


def _text(kind: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RequestError(f"structured_outputs.{kind} is a {type(value).__name__}; give a text")
    return value


def _texts(kind: str, value: Any) -> list[str]:
    if not isinstance(value, list):
        raise RequestError(f"structured_outputs.{kind} is no list; give a list of texts")
    return [_text(kind, each) for each in value]
