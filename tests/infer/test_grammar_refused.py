"""A form that cannot be enforced, or would take too long, is refused and says why."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from moesaic.config.model import ModelConfig
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import RequestError
from moesaic.infer import trial
from moesaic.infer.grammar import MOST_CHARACTERS, Grammar, Grammars


@pytest.fixture(scope="module")
def small(tiny_config: Callable[..., ModelConfig]) -> ModelConfig:
    return tiny_config("v3", vocab_size=300)


@pytest.fixture(scope="module")
def grammars(small: ModelConfig, tokenizer: Tokenizer) -> Grammars:
    return Grammars(small, tokenizer, check=lambda _: None)


REFUSED: dict[str, tuple[Callable[[Grammars], Grammar], str]] = {
    "a wrong type": (lambda of: of.of_schema({"type": "objekt"}), "Invalid type: objekt"),
    "an unknown key": (lambda of: of.of_schema({"not": {}}), r'Unimplemented keys: \["not"\]'),
    "nothing valid": (lambda of: of.of_schema({"enum": []}), "Unsatisfiable schema"),
    "another server": (lambda of: of.of_schema({"$ref": "http://a.b/c"}), "does not fetch"),
    "an open group": (lambda of: of.of_regex("(a"), "unclosed group"),
    "a look around": (lambda of: of.of_regex("(?=a)b"), "look-around"),
    "no rule": (lambda of: of.of_grammar("start: word"), 'unknown name: "word"'),
    "no grammar": (lambda of: of.of_grammar("word"), "Expected ::= at line 1"),
    "no choice": (lambda of: of.of_choice([]), "leaves nothing to choose; name the texts"),
    "too long": (lambda of: of.of_regex("a" * (MOST_CHARACTERS + 1)), "100001 characters, more"),
    "too many steps": (
        lambda of: of.of_schema(
            {"properties": {str(i): {"multipleOf": 7, "maximum": 10**12} for i in range(1000)}}
        ),
        "too big",
    ),
    "too deep": (lambda of: of.of_schema(nested(150)), "recursion limit"),
}


def nested(depth: int) -> dict[str, Any]:
    return {"type": "array", "items": nested(depth - 1)} if depth else {}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_enforced_is_refused_and_says_why(grammars: Grammars, why: str):
    make, message = REFUSED[why]
    with pytest.raises(RequestError, match=message):
        make(grammars)


def test_compiling_ends_in_time(
    small: ModelConfig, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trial, "MOST_S", 2)
    checked = Grammars(small, tokenizer)
    with pytest.raises(RequestError, match="takes more than 2 s to compile; correct or simplify"):
        checked.of_schema({"type": "integer", "multipleOf": 999_983})
    with pytest.raises(RequestError, match=r"the regex cannot be enforced: at 1.*unclosed group"):
        checked.of_regex("(a")
    assert checked.of_regex("a").begin().allowed().any()


def test_a_grammar_asked_for_again_is_there(grammars: Grammars):
    assert grammars.of_regex("[xyz]") is grammars.of_regex("[xyz]")


def test_a_tokenizer_of_other_parts_is_refused(small: ModelConfig, tokenizer: Tokenizer):
    source = {**json.loads(tokenizer.source), "decoder": {"type": "WordPiece", "prefix": "##"}}
    with pytest.raises(RequestError, match="needs a byte-level tokenizer"):
        Grammars(small, replace(tokenizer, source=json.dumps(source)))
