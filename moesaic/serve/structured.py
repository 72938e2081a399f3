"""The form of an answer that a client asks for, as the OpenAI API and vLLM name it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from moesaic.errors import RequestError, suggest
from moesaic.infer.grammar import Grammar, Grammars
from moesaic.infer.job import Job
from moesaic.serve.forms import Form

Fields = Mapping[str, Any]
"""A JSON object of a request."""

_ANY_OBJECT = {"type": "object"}
_FORMATS = ("text", "json_object", "json_schema")
_NAMED = frozenset({"name", "schema", "strict", "description"})
"""What the API has beside a schema: nothing but the schema changes an answer."""


def in_form(jobs: Sequence[Job], form: Form, grammars: Callable[[], Grammars]) -> list[Job]:
    """The same jobs, whose answers have the form that is asked for, if one is.

    Args:
        jobs: what is asked of the engine.
        form: the request.
        grammars: those of the model, which are got only where they are needed.

    Raises:
        RequestError: if the form is wrong, or cannot be enforced.
    """
    asked, extension = form.response_format, form.structured_outputs
    grammar = None if asked is None else response_grammar(asked, grammars)
    if extension is not None:
        if grammar is not None:
            raise RequestError(
                "response_format and structured_outputs both ask for a form; give one"
            )
        grammar = extension_grammar(extension, grammars)
    return [replace(job, grammar=grammar) for job in jobs]


def response_grammar(asked: Fields, grammars: Callable[[], Grammars]) -> Grammar | None:
    """What ``response_format`` says that an answer has to be; None for any text.

    Raises:
        RequestError: if it is not one of the API's, or the schema cannot be enforced.
    """
    kind = asked.get("type")
    if kind not in _FORMATS:
        hint = suggest(str(kind), _FORMATS)
        raise RequestError(f"response_format.type={kind!r} is not one of {_FORMATS}{hint}")
    known = ("type", "json_schema") if kind == "json_schema" else ("type",)
    _check_keys("response_format", asked, known)
    if kind == "json_schema":
        return grammars().of_schema(_named_schema(asked.get("json_schema")))
    return grammars().of_schema(_ANY_OBJECT) if kind == "json_object" else None


def extension_grammar(asked: Fields, grammars: Callable[[], Grammars]) -> Grammar:
    """What ``structured_outputs``, vLLM's extension, says that an answer has to be.

    Raises:
        RequestError: if it is not one of those that are served, or cannot be enforced.
    """
    kinds: dict[str, Callable[[Any], Grammar]] = {
        "json": lambda value: grammars().of_schema(_schema(value)),
        "json_object": lambda value: grammars().of_schema(_ANY_OBJECT),
        "regex": lambda value: grammars().of_regex(_text("regex", value)),
        "choice": lambda value: grammars().of_choice(_texts("choice", value)),
        "grammar": lambda value: grammars().of_grammar(_text("grammar", value)),
    }
    given = {key: value for key, value in asked.items() if value is not None}
    _check_keys("structured_outputs", given, kinds)
    if len(given) != 1 or given.get("json_object") is False:
        raise RequestError(
            f"structured_outputs has {', '.join(given) or 'nothing'}; give one of "
            f"{', '.join(kinds)}"
        )
    [(kind, value)] = given.items()
    return kinds[kind](value)


def _check_keys(where: str, given: Fields, known: Any) -> None:
    for key in given:
        if key not in known:
            hint = suggest(key, known) or "; remove it"
            raise RequestError(f"{where}.{key} is not served{hint}")


def _named_schema(asked: Any) -> Fields:
    """The schema in ``json_schema``; without one, any JSON."""
    if not isinstance(asked, dict):
        raise RequestError(
            "response_format.json_schema is missing or no object; give it a name and a schema"
        )
    _check_keys("response_format.json_schema", asked, _NAMED)
    return _schema(asked.get("schema") or {})


def _schema(value: Any) -> Fields:
    """A schema, or the text of one."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
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
