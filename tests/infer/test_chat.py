"""A conversation answers as if it were read whole, and reads only what is new."""

from pathlib import Path
from typing import Any

import pytest

from moesaic.config.chat import ChatConfig
from moesaic.data.chat import ChatTemplate
from moesaic.data.chat_templates import TEMPLATES
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import RequestError
from moesaic.infer.chat import Conversation
from moesaic.infer.decoder import TorchDecoder
from moesaic.infer.generate import generate, pool_for
from moesaic.model.transformer import Transformer

N_TOKENS = 6
ROLE_FIRST = (
    "{% for m in messages %}{{ m['role'] ~ ':' ~ m['content'] ~ ',' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def begin(
    model: Transformer, tokenizer: Tokenizer, template: str = ROLE_FIRST, **settings: Any
) -> Conversation:
    config = ChatConfig.parse({"max_new_tokens": N_TOKENS, "temperature": 0.8, **settings})
    decoder = TorchDecoder(model, pool_for(model, [128]))
    return Conversation(decoder, ChatTemplate(template, tokenizer), config)


def say(conversation: Conversation, text: str) -> str:
    return "".join(conversation.answer(text))


def alone(model: Transformer, tokenizer: Tokenizer, seed: int, *turns: str) -> str:
    """What follows these turns, the user's first, when all of them are read at once."""
    roles = ("user", "assistant") * len(turns)
    messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]
    ids = ChatTemplate(ROLE_FIRST, tokenizer).encode_prompt(messages)
    settings: dict[str, Any] = {"max_new_tokens": N_TOKENS, "temperature": 0.8, "seed": seed}
    [continuation] = generate(model, [ids], tokenizer, **settings)
    return continuation.text


def test_answers_are_those_of_the_whole_conversation(model: Transformer, tokenizer: Tokenizer):
    conversation = begin(model, tokenizer, seed=5)
    first = say(conversation, "one")
    second = say(conversation, "two")
    assert first == alone(model, tokenizer, 5, "one")
    assert second == alone(model, tokenizer, 6, "one", first, "two")
    assert [turn["content"] for turn in conversation.turns] == ["one", first, "two", second]


def test_a_turn_reads_only_what_is_new(model: Transformer, tokenizer: Tokenizer):
    conversation = begin(model, tokenizer, max_new_tokens=1)
    said = say(conversation, "one two three four five")
    assert conversation.n_read == len(tokenizer.encode("user:one two three four five,assistant:"))
    say(conversation, "one")
    new = len(tokenizer.encode(said + ",")) + len(tokenizer.encode("user:one,assistant:"))
    assert conversation.n_read <= new


def test_what_the_template_writes_otherwise_is_read_anew(model: Transformer, tokenizer: Tokenizer):
    conversation = begin(model, tokenizer)
    say(conversation, "one two three")
    conversation.system = "four"
    again = say(conversation, "one")
    fresh = begin(model, tokenizer, system="four")
    fresh.turns = conversation.turns[:2]
    assert again == say(fresh, "one")


def test_after_a_reset_the_first_answer_comes_again(model: Transformer, tokenizer: Tokenizer):
    conversation = begin(model, tokenizer)
    first = say(conversation, "one")
    say(conversation, "two")
    conversation.reset()
    assert say(conversation, "one") == first


@pytest.mark.parametrize("speculate", ["always", "auto"])
def test_with_drafts_the_likeliest_answers_are_the_same(
    speculate: str, model: Transformer, tokenizer: Tokenizer
):
    said = []
    for way in ("never", speculate):
        conversation = begin(model, tokenizer, temperature=0, max_new_tokens=9, speculate=way)
        said.append([say(conversation, text) for text in ("one", "two")])
        conversation.system = "five"
        said[-1].append(say(conversation, "one"))
    assert said[0] == said[1]


def test_with_drafts_a_turn_reads_only_what_is_new(tokenizer: Tokenizer, model: Transformer):
    """And some tokens of the answer before: the prediction module is behind by those."""
    conversation = begin(model, tokenizer, max_new_tokens=8, speculate="always")
    said = say(conversation, "one two three four five")
    say(conversation, "one")
    new = len(tokenizer.encode(said + ",")) + len(tokenizer.encode("user:one,assistant:"))
    assert conversation.n_read <= new + 3


def test_with_drafts_a_stopped_answer_stays_as_far_as_it_went(
    model: Transformer, tokenizer: Tokenizer
):
    conversation = begin(model, tokenizer, temperature=0, max_new_tokens=20, speculate="always")
    looks = iter([False, False, False, True])
    said = "".join(conversation.answer("one", lambda: next(looks)))
    plain = begin(model, tokenizer, temperature=0, max_new_tokens=20)
    assert say(plain, "one").startswith(said[:1])
    plain.turns[1] = {"role": "assistant", "content": said}
    assert say(conversation, "two") == say(plain, "two")


def test_drafts_that_lost_in_one_answer_are_not_made_in_the_next(
    model: Transformer, tokenizer: Tokenizer
):
    conversation = begin(model, tokenizer, speculate="auto")
    assert conversation.drafts is not None
    pace = conversation.drafts.pace(1)
    for _ in range(3):
        pace.add(1.0, None)
        pace.add(2.5, [1])
    assert not conversation.drafts.is_on
    assert say(conversation, "one") == alone(model, tokenizer, 0, "one")


def test_a_stopped_answer_stays_as_far_as_it_went(model: Transformer, tokenizer: Tokenizer):
    conversation = begin(model, tokenizer)
    looks = iter([False, False, False, True])
    said = "".join(conversation.answer("one", lambda: next(looks)))
    assert alone(model, tokenizer, 0, "one").startswith(said[:1])
    assert conversation.turns[1]["content"] == said
    assert say(conversation, "two") == alone(model, tokenizer, 1, "one", said, "two")


def test_a_message_stopped_before_its_answer_is_forgotten(model: Transformer, tokenizer: Tokenizer):
    conversation = begin(model, tokenizer)
    assert "".join(conversation.answer("one", lambda: True)) == ""
    assert conversation.turns == []
    assert say(conversation, "two") == alone(model, tokenizer, 0, "two")


def test_a_space_before_the_answer_is_the_templates(model: Transformer, tokenizer: Tokenizer):
    conversation = begin(model, tokenizer, TEMPLATES["deepseek-v2"])
    asked = [{"role": "user", "content": "one"}]
    assert conversation._content(asked, " two") == "two"
    assert conversation._content(asked, "two") == "two"


def test_an_answer_ends_where_the_room_ends(model: Transformer, tokenizer: Tokenizer):
    n_prompt = len(tokenizer.encode("user:one,assistant:"))
    conversation = begin(model, tokenizer, context=n_prompt + 2)
    assert len(list(conversation.answer("one"))) == 2
    with pytest.raises(
        RequestError, match=r"leaves none for an answer; begin anew with /reset, or"
    ):
        say(conversation, "two")
    assert len(conversation.turns) == 2


def test_a_folder_answers_the_same_in_a_bounded_memory(folder: Path):
    said = []
    for further in ({}, {"memory": "80KiB"}):
        given = {"max_new_tokens": N_TOKENS, "temperature": 0, "dtype": "float32", **further}
        config = ChatConfig.parse({"chat_template": "deepseek-v2", "context": 64, **given})
        said.append(say(Conversation.load(folder, config), "one"))
    assert said[0] == said[1]
