"""A text has the form that was asked for whatever the model would say; the rest is the model's."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jobs import engine_of, job

from moesaic.config.model import ModelConfig
from moesaic.data.tokenizer import Tokenizer
from moesaic.infer.grammar import Course, Grammar, Grammars, forbid
from moesaic.infer.job import Job, Piece
from moesaic.model.build import build_model
from moesaic.model.transformer import Transformer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "langues": {"type": "array", "items": {"enum": ["fr", 'ü"\n', "日"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "person": PERSON,
    "bool": {"type": "boolean"},
    "const": {"const": {"a": [1, None]}},
    "number": {"type": "number", "minimum": -1.5, "exclusiveMaximum": 3},
    "tuple": {
        "type": "array",
        "prefixItems": [{"type": "null"}, {"type": "boolean"}],
        "items": False,
    },
    "either": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "integer", "multipleOf": 5}]},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,4}$"},
    "date": {"type": "string", "format": "date"},
    "map": {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 2},
    "tree": {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "v": {"type": "boolean"},
                    "below": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1},
                },
                "required": ["v", "below"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    },
    "all of": {
        "allOf": [{"type": "integer", "minimum": 3}, {"type": "integer", "maximum": 12}],
    },
}
PATTERNS = [
    r"[0-9]{3}-[0-9]{4}",
    r"(yes|no|it depends)",
    r"\d+(\.\d{2})? (EUR|₣)",
    r"a*b?[^\n]{0,4}z",
]


@pytest.fixture(scope="module")
def small(tiny_config: Callable[..., ModelConfig]) -> ModelConfig:
    """A model that knows more tokens than its tokenizer, and whose texts two of them end."""
    return tiny_config("v3", vocab_size=310, eos_token_id=(1, 305), max_position_embeddings=512)


@pytest.fixture(scope="module")
def grammars(small: ModelConfig, tokenizer: Tokenizer) -> Grammars:
    """Of grammars that need no check in a process of its own."""
    return Grammars(small, tokenizer, check=lambda _: None)


@pytest.fixture(scope="module")
def speaker(small: ModelConfig) -> Transformer:
    return build_model(small, seed=1).requires_grad_(False)


def draw(grammar: Grammar, seed: int, most: int = 3000) -> list[int]:
    """Tokens that may follow each other, each as likely as the others; without the end."""
    course, ids = grammar.begin(), list[int]()
    generator = torch.Generator().manual_seed(seed)
    while not course.is_complete and len(ids) < most:
        allowed = course.allowed().nonzero().flatten()
        token = int(allowed[torch.randint(len(allowed), (1,), generator=generator)])
        if token in (1, 305):
            break
        course.take(token)
        ids.append(token)
    return ids


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_follows_a_schema_is_valid(grammars: Grammars, tokenizer: Tokenizer, name: str):
    grammar = grammars.of_schema(SCHEMAS[name])
    judge = jsonschema.Draft202012Validator(
        SCHEMAS[name], format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    texts = {tokenizer.decode(draw(grammar, seed)) for seed in range(15)}
    for text in texts:
        judge.validate(json.loads(text))
    assert len(texts) > 3 or name in ("bool", "const", "tuple")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_follows_an_expression_matches_it(
    grammars: Grammars, tokenizer: Tokenizer, pattern: str
):
    grammar = grammars.of_regex(pattern)
    for seed in range(15):
        assert re.fullmatch(pattern, tokenizer.decode(draw(grammar, seed)))


def test_a_choice_is_one_of_its_texts(grammars: Grammars, tokenizer: Tokenizer):
    texts = {"one", "one two", "日本", ""}
    grammar = grammars.of_choice(sorted(texts))
    assert {tokenizer.decode(draw(grammar, seed)) for seed in range(60)} == texts


@pytest.mark.parametrize(
    "grammar", ['start: "(" start ")" | "x"', 'root ::= "(" root ")" | "x"'], ids=["Lark", "GBNF"]
)
def test_what_follows_a_grammar_is_of_its_language(
    grammars: Grammars, tokenizer: Tokenizer, grammar: str
):
    for seed in range(10):
        text = tokenizer.decode(draw(grammars.of_grammar(grammar), seed))
        depth = text.count("(")
        assert text == "(" * depth + "x" + ")" * depth


def follows(course: Course, tokenizer: Tokenizer, text: str) -> bool:
    """Whether a text may be written, and be whole, byte by byte."""
    for id_ in tokenizer.encode(text):
        if not course.allowed()[id_]:
            return False
        course.take(id_)
    return course.is_complete or bool(course.allowed()[1])


@given(text=st.text(st.sampled_from("abc01"), max_size=6))
def test_exactly_what_matches_may_be_written(grammars: Grammars, tokenizer: Tokenizer, text: str):
    pattern = r"[ab]+(01|c)*"
    course = grammars.of_regex(pattern).begin()
    assert follows(course, tokenizer, text) == bool(re.fullmatch(pattern, text))


@given(seed=st.integers(0, 10_000), steps=st.integers(0, 30))
def test_a_token_that_ends_texts_is_allowed_where_the_text_is_whole_and_only_there(
    grammars: Grammars, tokenizer: Tokenizer, seed: int, steps: int
):
    course, ids = grammars.of_regex(r"([0-9]{2};)*").begin(), list[int]()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        allowed = course.allowed()
        assert bool(allowed[1]) == bool(allowed[305]) == (len(tokenizer.decode(ids)) % 3 == 0)
        further = allowed.nonzero().flatten()
        further = further[(further != 1) & (further != 305)]
        ids.append(int(further[torch.randint(len(further), (1,), generator=generator)]))
        course.take(ids[-1])


def test_names_of_special_tokens_are_no_text(grammars: Grammars, tokenizer: Tokenizer):
    allowed = grammars.of_regex(r"(.|\n)*").begin().allowed()
    special = [*tokenizer.special_ids, *range(tokenizer.vocab_size, 310)]
    assert [id_ for id_ in special if allowed[id_]] == [1, 305]
    assert allowed.sum() > 150


@given(seed=st.integers(0, 1000))
def test_forbidden_tokens_are_never_the_likeliest(grammars: Grammars, seed: int):
    generator = torch.Generator().manual_seed(seed)
    logits_BV = torch.randn(3, 310, generator=generator) * 100
    before = logits_BV.clone()
    course = grammars.of_choice(["yes", "no"]).begin()
    kept_BV, failed = forbid(logits_BV, [course, None, None])
    assert not failed
    assert torch.equal(logits_BV, before)
    assert torch.equal(kept_BV[1:], before[1:])
    assert course.allowed()[kept_BV[0].argmax()]
    assert (kept_BV[0] > torch.finfo(torch.float32).min).sum() == course.allowed().sum()


def test_a_row_in_which_nothing_may_follow_fails_alone(
    tiny_config: Callable[..., ModelConfig], tokenizer: Tokenizer
):
    few = Grammars(tiny_config("v3", vocab_size=20, eos_token_id=1), tokenizer)  # without letters
    courses = [None, few.of_choice(["yes"]).begin()]
    kept_BV, failed = forbid(torch.zeros(2, 20), courses)
    assert list(failed) == [1]
    assert "no token of the model's vocabulary goes on" in str(failed[1])
    assert torch.equal(kept_BV[0], torch.zeros(20))


def answers(
    model: Transformer, tokenizer: Tokenizer, jobs: Sequence[Job], **settings: object
) -> list[list[Piece]]:
    with engine_of(model, tokenizer, n_blocks=1024, **settings) as engine:
        streams = [engine.submit(one) for one in jobs]
        return [list(stream) for stream in streams]


def said(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def asked(grammar: Grammar | None, seed: int, **settings: Any) -> Job:
    plain = job([10, 20, 30], seed=seed, **{"max_new_tokens": 300, "temperature": 1.0, **settings})
    return Job(plain.prompt_ids, plain.settings, grammar=grammar, top_logprobs=2)


def test_requests_of_one_batch_each_follow_their_own(
    speaker: Transformer, tokenizer: Tokenizer, grammars: Grammars
):
    schema, pattern = grammars.of_schema(PERSON), grammars.of_regex(PATTERNS[0])
    jobs = [asked(each, seed) for seed in range(2) for each in (schema, pattern, None)]
    together = answers(speaker, tokenizer, jobs)
    for person, number, free in zip(*[iter(together)] * 3, strict=True):
        jsonschema.validate(json.loads(said(person)), PERSON)
        assert re.fullmatch(PATTERNS[0], said(number))
        assert number[-1].ending == "complete"
        assert not re.fullmatch(PATTERNS[0], said(free))
    alone = [answers(speaker, tokenizer, [each])[0] for each in jobs[:3]]
    assert [said(each) for each in alone] == [said(each) for each in together[:3]]


def test_greedy_and_cut_distributions_follow_too(
    speaker: Transformer, tokenizer: Tokenizer, grammars: Grammars
):
    grammar = grammars.of_regex(PATTERNS[0])
    for settings in ({"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.01}):
        [pieces] = answers(speaker, tokenizer, [asked(grammar, 0, **settings)])
        assert re.fullmatch(PATTERNS[0], said(pieces))


def test_probabilities_are_those_of_the_model(
    speaker: Transformer, tokenizer: Tokenizer, grammars: Grammars
):
    [pieces] = answers(speaker, tokenizer, [asked(grammars.of_choice(["yes", "no"]), 0)])
    with torch.no_grad():
        logprobs_V = speaker(torch.tensor([[10, 20, 30]]))[0, -1].log_softmax(-1)
    assert pieces[0].logprob == pytest.approx(float(logprobs_V[pieces[0].token]), abs=1e-4)
    assert pieces[0].top_logprobs[0][0] == int(logprobs_V.argmax())


def test_a_stop_text_ends_it_before(speaker: Transformer, tokenizer: Tokenizer, grammars: Grammars):
    grammar = grammars.of_grammar('start: "one two three four"')
    [pieces] = answers(speaker, tokenizer, [asked(grammar, 0, stop=["three"])])
    assert (said(pieces), pieces[-1].ending) == ("one two ", "stop")


def test_a_request_that_loses_its_room_goes_on_where_it_was(
    speaker: Transformer, tokenizer: Tokenizer, grammars: Grammars
):
    grammar = grammars.of_regex("[ab]{60}")
    jobs = [asked(grammar, seed, max_new_tokens=100) for seed in range(4)]
    with engine_of(speaker, tokenizer, n_blocks=40) as engine:
        found = [said(list(stream)) for stream in [engine.submit(each) for each in jobs]]
        assert engine.stats().meter.tokens["again"] > 0
    assert all(re.fullmatch("[ab]{60}", each) for each in found)


def test_without_a_token_that_ends_texts_a_text_is_whole_when_nothing_may_follow(
    model: Transformer, tokenizer: Tokenizer
):
    endless = replace(tokenizer, eos_ids=())
    grammar = Grammars(model.config, endless).of_schema(SCHEMAS["tuple"])
    [pieces] = answers(model, endless, [asked(grammar, 0, max_new_tokens=100)])
    assert json.loads(said(pieces))[0] is None
    assert pieces[-1].ending == "complete"
