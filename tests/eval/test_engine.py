"""An answer is that of the whole model on the request alone, however requests are batched."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from models import random_model
from small_tasks import all_tasks, choices, words

from moesaic.config.eval import EvalConfig
from moesaic.config.model import ModelConfig
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import ConfigError, DataError, RequestError
from moesaic.eval.engine import Engine
from moesaic.eval.requests import (
    Answer,
    Generation,
    GenerationAnswer,
    Likelihood,
    LikelihoodAnswer,
    Request,
    Rolling,
    RollingAnswer,
)
from moesaic.infer.generate import generate
from moesaic.model.transformer import Transformer

Config = Callable[..., ModelConfig]


def answers(engine: Engine, requests: Sequence[Request]) -> list[Answer]:
    found = dict(engine.answer(requests))
    assert sorted(found) == list(range(len(requests)))
    return [found[place] for place in range(len(requests))]


def near(value: float, within: float) -> Any:
    """Equal to numbers that differ by rounding."""
    return pytest.approx(value, abs=within)


@torch.no_grad()
def log_p(model: Transformer, ids: Sequence[int], tokens: int) -> tuple[float, bool]:
    """Sum over the last tokens of a row, all of which is fed, and whether each is the likeliest."""
    logits = model(torch.tensor([list(ids[:-1])]))[0, -tokens:].double()
    last = torch.tensor(list(ids[-tokens:]))
    each = logits.log_softmax(-1)[torch.arange(tokens), last]
    return float(each.sum()), bool((logits.argmax(-1) == last).all())


def many_requests() -> list[Request]:
    """Shared contexts, one-token choices, texts of many lengths."""
    tasks = all_tasks(8)
    found: list[Request] = [r for task in tasks for item in task.items for r in task.requests(item)]
    question = words(25, seed=99)
    found += [Likelihood(question, f" {letter}") for letter in "ABCD"]
    found += [Likelihood("", "one two"), Likelihood("one ", "two"), Likelihood("x", " three " * 12)]
    return found


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_an_answer_does_not_depend_on_what_else_is_asked(
    tiny_config: Config, tokenizer: Tokenizer, family: str
) -> None:
    engine = Engine(
        random_model(tiny_config(family, vocab_size=300)), tokenizer, EvalConfig(batch_tokens=400)
    )
    requests = many_requests()
    for request, together in zip(requests, answers(engine, requests), strict=True):
        [alone] = answers(engine, [request])
        if isinstance(alone, GenerationAnswer):
            assert together == alone
        else:
            assert not isinstance(together, GenerationAnswer)
            assert together.log_probability == pytest.approx(alone.log_probability, abs=1e-4)
            assert together.tokens == alone.tokens


def test_a_likelihood_is_the_sum_over_the_continuations_tokens(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    context, continuation = "one two", " three four"
    ids = tokenizer.encode_prompt(context + continuation)
    tokens = len(ids) - len(tokenizer.encode_prompt(context))
    expected, is_greedy = log_p(model, ids, tokens)
    [found] = answers(Engine(model, tokenizer), [Likelihood(context, continuation)])
    assert found == LikelihoodAnswer(near(expected, 1e-4), is_greedy, tokens)


def test_the_likeliest_continuation_is_greedy(model: Transformer, tokenizer: Tokenizer) -> None:
    [text] = generate(model, "one two", tokenizer, max_new_tokens=3, temperature=0)
    ids = (*text.prompt_ids, *text.ids)
    assert log_p(model, ids, 3)[1]
    with torch.no_grad():
        likeliest = int(model(torch.tensor([list(text.prompt_ids)]))[0, -1].argmax())
    names = {place: tokenizer.decode([place]) for place in range(300)}
    ordinary = [place for place, name in names.items() if tokenizer.encode(name) == [place]]
    assert likeliest in ordinary, "take another seed: this token has no text of its own"
    requests = [Likelihood("one two", names[place]) for place in ordinary]
    encoded = [tokenizer.encode("one two" + r.continuation) for r in requests]
    before = tokenizer.encode("one two")
    for request, ids, answer in zip(
        requests, encoded, answers(Engine(model, tokenizer), requests), strict=True
    ):
        assert isinstance(answer, LikelihoodAnswer)
        if ids[:-1] == before:
            assert answer.is_greedy == (ids[-1] == likeliest), request


def test_spaces_that_end_a_context_belong_to_the_continuation(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    first, second = answers(
        Engine(model, tokenizer), [Likelihood("one two ", "three"), Likelihood("one two", " three")]
    )
    assert first == second


def test_an_empty_context_is_the_beginning_of_a_text(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    ids = [tokenizer.bos_id or 0, *tokenizer.encode("one two")]
    expected, is_greedy = log_p(model, ids, len(ids) - 1)
    found = answers(Engine(model, tokenizer), [Likelihood("", "one two"), Likelihood(" ", "two")])
    assert found[0] == LikelihoodAnswer(near(expected, 1e-4), is_greedy, len(ids) - 1)
    spaced = [ids[0], *tokenizer.encode(" two")]
    assert found[1] == LikelihoodAnswer(
        near(log_p(model, spaced, len(spaced) - 1)[0], 1e-4), False, len(spaced) - 1
    )


def test_of_a_long_context_the_beginning_is_left_out(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    context = words(300, seed=1)
    ids = tokenizer.encode_prompt(f"{context} four")
    assert len(ids) > 129
    expected, _ = log_p(model, ids[-129:], 1)
    [found] = answers(Engine(model, tokenizer), [Likelihood(context, " four")])
    assert isinstance(found, LikelihoodAnswer)
    assert found.log_probability == pytest.approx(expected, abs=1e-4)


def test_every_token_of_a_long_text_is_predicted_once_with_as_much_before_it_as_fits(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    text = words(90, seed=2)
    ids = tokenizer.encode_prompt(text)  # which begins with BOS, and the prefix is another one
    assert len(ids) > 2 * 32
    prefix, expected = tokenizer.bos_id or 0, 0.0
    for start in range(0, len(ids), 32):
        end = min(start + 32, len(ids))
        before = [prefix] if start == 0 else ids[end - 33 : start]
        expected += log_p(model, [*before, *ids[start:end]], end - start)[0]
    engine = Engine(model, tokenizer, EvalConfig(max_length=32))
    assert answers(engine, [Rolling(text), Rolling("")]) == [
        RollingAnswer(near(expected, 1e-3), len(ids)),
        RollingAnswer(near(log_p(model, [prefix, prefix], 1)[0], 1e-4), 1),
    ]
    settings = {**tokenizer.settings, "add_bos_token": False}
    without = Engine(model, replace(tokenizer, settings=settings))
    assert answers(without, [Rolling("")]) == [RollingAnswer(0.0, 0)]


def test_a_prompt_is_continued_up_to_a_stop(model: Transformer, tokenizer: Tokenizer) -> None:
    [free] = generate(model, "one two", tokenizer, max_new_tokens=12, temperature=0)
    stop = free.text[4:6]
    engine = Engine(model, tokenizer)
    found = answers(
        engine, [Generation("one two", (), 12), Generation("one two", (stop, "never"), 12)]
    )
    assert found[0] == GenerationAnswer(free.text, len(free.ids))
    assert isinstance(found[1], GenerationAnswer)
    assert found[1].text == free.text[: free.text.index(stop)]
    [short] = answers(
        Engine(model, tokenizer, EvalConfig(max_new_tokens=3)), [Generation("one two", (), 12)]
    )
    assert short == GenerationAnswer(tokenizer.decode(free.ids[:3]), 3)


def test_the_name_of_a_special_token_stops_where_that_token_is_drawn(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    special = next(iter(sorted(tokenizer.special_ids - {*tokenizer.eos_ids})))
    with torch.no_grad():
        head = model.head_weight
        head[special] = 50 * model.hidden_states(torch.tensor([[5]]))[0, -1]
    name = tokenizer.token(special)
    [free] = generate(model, "one two", tokenizer, max_new_tokens=12, temperature=0)
    [found] = answers(Engine(model, tokenizer), [Generation("one two", (name,), 12)])
    assert isinstance(found, GenerationAnswer)
    drawn = list(free.ids)
    assert found.tokens == (drawn.index(special) + 1 if special in drawn else 12)


def test_a_prompt_leaves_room_for_its_answer(model: Transformer, tokenizer: Tokenizer) -> None:
    prompt = words(200, seed=3)
    ids = tokenizer.encode_prompt(prompt)
    [kept] = generate(model, [ids[-120:]], tokenizer, max_new_tokens=8, temperature=0)
    [found] = answers(Engine(model, tokenizer), [Generation(prompt, (), 8)])
    assert isinstance(found, GenerationAnswer)
    assert found.text == kept.text


def test_drawn_texts_depend_on_the_seed_and_not_on_the_batch(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    requests = [Generation(words(4 + n, seed=n), (), 8, temperature=1.0) for n in range(6)]
    large, small, other = (
        answers(Engine(model, tokenizer, EvalConfig(batch_tokens=tokens, seed=seed)), requests)
        for tokens, seed in ((8192, 1), (40, 1), (8192, 2))
    )
    assert large == small
    assert large != other


def test_known_answers_are_not_given_and_the_others_are_the_same_bit_for_bit(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    engine = Engine(model, tokenizer, EvalConfig(batch_tokens=200))
    requests = many_requests()
    every = answers(engine, requests)
    known = set(range(0, len(requests), 3))
    rest = dict(engine.answer(requests, known))
    assert rest == {place: every[place] for place in range(len(every)) if place not in known}
    assert not dict(engine.answer(requests, range(len(requests))))


def test_one_question_with_one_token_choices_is_one_row(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    task = choices(1)
    question = task.items[0]["question"]
    four = [Likelihood(question, letter) for letter in "abcd"]
    together, alone = (answers(Engine(model, tokenizer), requests) for requests in (four, four[:1]))
    assert together[0] == alone[0]  # bit for bit: it is the same pass


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            Generation("one", (), 128),
            "max_new_tokens=128 leaves no room for a prompt in max_length=128; lower max_new_tokens"
            " or raise max_length",
        ),
        (
            Likelihood("one", ""),
            "the continuation '' after 'one' has no token of its own; give one that does not merge "
            "with the context",
        ),
        (Likelihood("one", " 1" * 200), "more than max_length=128; raise max_length, or ask for a"),
    ],
)
def test_a_request_that_does_not_fit_says_why(
    model: Transformer, tokenizer: Tokenizer, request_: Request, message: str
) -> None:
    with pytest.raises(RequestError) as error:
        answers(Engine(model, tokenizer), [request_])
    assert message in str(error.value)


def test_a_chat_model_gets_the_prompt_as_the_users_turn(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    template = (
        "{{ bos_token }}{% for message in messages %}{{ message.role }} {{ message.content }}."
        "{% endfor %}{% if add_generation_prompt %}one{% endif %}"
    )
    settings = {**tokenizer.settings, "chat_template": template}
    config, request = EvalConfig(chat=True), Generation("two", (), 6)
    [found] = answers(Engine(model, replace(tokenizer, settings=settings), config), [request])
    ids = [tokenizer.bos_id or 0, *tokenizer.encode("user two.one")]  # one BOS, not two
    [expected] = generate(model, [ids], tokenizer, max_new_tokens=6, temperature=0)
    assert found == GenerationAnswer(expected.text, 6)
    with pytest.raises(DataError, match="chat=true, but the tokenizer has no chat template; add"):
        answers(Engine(model, tokenizer, config), [request])


def test_a_model_that_gives_no_numbers_is_refused(model: Transformer, tokenizer: Tokenizer) -> None:
    with torch.no_grad():
        model.head_weight[7] = float("nan")
    with pytest.raises(RequestError, match="the model's logits are not finite in float32; take"):
        answers(Engine(model, tokenizer), [Rolling("one two")])


def test_settings_and_tokenizer_must_fit_the_model(
    tiny_config: Config, model: Transformer, tokenizer: Tokenizer
) -> None:
    with pytest.raises(ConfigError, match="max_length=129 is more than the model's max_position_e"):
        Engine(model, tokenizer, EvalConfig(max_length=129))
    with pytest.raises(ConfigError, match="the tokenizer has 297 tokens, more than vocab_size=64"):
        Engine(random_model(tiny_config("v3")), tokenizer)
