"""The form of an answer that a client asks for, as the OpenAI API and vLLM name it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from moesaic.errors import RequestError, suggest
from moesaic.infer.grammar import Grammar, Grammars
from moesaic.infer.job import Job
from moesaic.infer.structured import (
    ANY_OBJECT,
    Fields,
    check_keys,
    read_schema,
    structured_grammar,
)
from moesaic.serve.forms import Form

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
        grammar = structured_grammar(extension, grammars)
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
    check_keys("response_format", asked, known)
    if kind == "json_schema":
        return grammars().of_schema(_named_schema(asked.get("json_schema")))
    return grammars().of_schema(ANY_OBJECT) if kind == "json_object" else None


def _named_schema(asked: Any) -> Fields:
    """The schema in ``json_schema``; without one, any JSON."""
    if not isinstance(asked, dict):
        raise RequestError(
            "response_format.json_schema is missing or no object; give it a name and a schema"
        )
    check_keys("response_format.json_schema", asked, _NAMED)
    return read_schema(asked.get("schema") or {})
