"""An answer has the form that a client asks for, in the API's words or in vLLM's."""

import json
import re
from typing import Any

import jsonschema
import openai
import pytest
from served import NAME

TURNS: Any = [{"role": "user", "content": "To be or not to be?"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
NAMED: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}

pytestmark = pytest.mark.slow  # real servers and clients, by the clock


def chat(client: openai.OpenAI, seed: int = 1, **asked: Any) -> str:
    answer = client.chat.completions.create(
        model=NAME, messages=TURNS, max_tokens=120, seed=seed, **asked
    )
    assert answer.choices[0].finish_reason == "stop"
    return answer.choices[0].message.content or ""


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_is_valid_by_its_schema(client: openai.OpenAI, seed: int):
    jsonschema.validate(json.loads(chat(client, seed, response_format=NAMED)), SCHEMA)


def test_the_same_seed_gives_the_same_answer_in_pieces_too(client: openai.OpenAI):
    whole = chat(client, 5, response_format=NAMED)
    assert chat(client, 5, response_format=NAMED) == whole
    events = client.chat.completions.create(
        model=NAME,
        messages=TURNS,
        max_tokens=120,
        seed=5,
        response_format=NAMED,
        stream=True,
        logprobs=True,
    )
    pieces = [event.choices[0] for event in events]
    assert "".join(piece.delta.content or "" for piece in pieces) == whole
    assert all(piece.logprobs and piece.logprobs.content for piece in pieces[1:])


def test_the_choices_of_a_request_follow_each_for_itself(client: openai.OpenAI):
    answer = client.chat.completions.create(
        model=NAME, messages=TURNS, max_tokens=120, seed=1, n=3, response_format=NAMED
    )
    texts = [choice.message.content or "" for choice in answer.choices]
    assert len(set(texts)) == 3
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)


def test_any_json_object_begins_as_one(client: openai.OpenAI):
    answer = client.chat.completions.create(
        model=NAME, messages=TURNS, max_tokens=30, response_format={"type": "json_object"}, seed=2
    )
    assert (answer.choices[0].message.content or "").startswith("{")


def test_any_text_is_no_form(client: openai.OpenAI):
    asked: Any = dict(model=NAME, messages=TURNS, max_tokens=9, seed=3)
    plain = client.chat.completions.create(**asked).choices[0].message.content
    text = client.chat.completions.create(**asked, response_format={"type": "text"})
    assert text.choices[0].message.content == plain


FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "regex": ({"regex": r"[ab]{3}-[0-9]{2}"}, r"[ab]{3}-[0-9]{2}"),
    "choice": ({"choice": ["positive", "negative"]}, "positive|negative"),
    "grammar": ({"grammar": 'root ::= "x" root "y" | "z"'}, "(x*)z(y*)"),
    "json": ({"json": SCHEMA}, r'\{"name":".{0,12}","old":(true|false)\}'),
    "the text of a schema": ({"json": json.dumps({"const": 1})}, "1"),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_has_the_form_that_an_extension_asks_for(client: openai.OpenAI, form: str):
    asked, pattern = FORMS[form]
    answer = client.completions.create(
        model=NAME, prompt="To be", max_tokens=200, seed=4, extra_body={"structured_outputs": asked}
    )
    assert re.fullmatch(pattern, answer.choices[0].text)
    assert answer.choices[0].finish_reason == "stop"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a wrong schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
        "the schema cannot be enforced: Invalid type: x; correct or simplify it",
    ),
    "no schema": (
        {"response_format": {"type": "json_schema"}},
        "response_format.json_schema is missing or no object; give it a name and a schema",
    ),
    "a wrong kind": (
        {"response_format": {"type": "json_objekt"}},
        "response_format.type='json_objekt' is not one of",
    ),
    "a wrong key": (
        {"response_format": {"type": "text", "schema": {}}},
        "response_format.schema is not served; remove it",
    ),
    "a list": ({"response_format": []}, "response_format=[] is not allowed"),
    "two": (
        {"structured_outputs": {"regex": "a", "choice": ["a"]}},
        "structured_outputs has regex, choice; give one of json, json_object, regex, choice",
    ),
    "none": ({"structured_outputs": {}}, "structured_outputs has nothing; give one of json"),
    "not served": (
        {"structured_outputs": {"structural_tag": "a"}},
        "structured_outputs.structural_tag is not served",
    ),
    "no text": ({"structured_outputs": {"regex": 3}}, "structured_outputs.regex is a int; give"),
    "no json": ({"structured_outputs": {"json": "{"}}, "the schema is not JSON"),
    "both": (
        {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
        "response_format and structured_outputs both ask for a form; give one",
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_form_that_cannot_be_enforced_is_refused_and_says_why(client: openai.OpenAI, why: str):
    asked, message = REFUSED[why]
    with pytest.raises(openai.BadRequestError) as refused:
        client.post(
            "/chat/completions",
            body={"model": NAME, "messages": TURNS, "max_tokens": 3, **asked},
            cast_to=object,
        )
    assert message in str(refused.value)
    assert refused.value.type == "invalid_request_error"
