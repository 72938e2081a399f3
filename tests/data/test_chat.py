from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from moesaic.data.chat import ChatTemplate
from moesaic.data.chat_templates import TEMPLATES
from moesaic.data.special import ASSISTANT, USER
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import DataError

TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How many?"},
    {"role": "assistant", "content": "72: 关关"},
    {"role": "user", "content": " Sure? "},
    {"role": "assistant", "content": " yes\n"},
]
TAGGED = """{%- for message in messages %}
    {%- if message.role == 'assistant' %}
<a>{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}

    {% else %}
<{{ message.role }}>{{ message.content }}
    {% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<a>{% endif %}"""


def answers(template: ChatTemplate, turns: list[dict[str, Any]]) -> str:
    ids, mask = template.encode(turns)
    said = [id_ for id_, is_answer in zip(ids, mask, strict=True) if is_answer]
    return template.tokenizer.decode(said, skip_special=False)


def test_v2_writes_user_and_assistant_as_words(tokenizer: Tokenizer):
    bos, eos = tokenizer.token(0), tokenizer.token(1)
    template = ChatTemplate.of(tokenizer, "deepseek-v2")
    assert template.render(TURNS) == (
        f"{bos}Be brief.\n\nUser: How many?\n\nAssistant: 72: 关关{eos}"
        f"User:  Sure? \n\nAssistant:  yes\n{eos}"
    )
    assert template.render(TURNS[:2], add_generation_prompt=True).endswith("\n\nAssistant:")
    assert answers(template, TURNS) == f" 72: 关关{eos}  yes\n{eos}"


def test_v3_writes_user_and_assistant_as_tokens(tokenizer: Tokenizer):
    bos, eos = tokenizer.token(0), tokenizer.token(1)
    template = ChatTemplate.of(tokenizer, "deepseek-v3")
    assert template.render(TURNS) == (
        f"{bos}Be brief.{USER}How many?{ASSISTANT}72: 关关{eos}{USER} Sure? {ASSISTANT} yes\n{eos}"
    )
    assert answers(template, TURNS) == f"72: 关关{eos} yes\n{eos}"


def test_v3_puts_all_system_messages_first(tokenizer: Tokenizer):
    turns = [TURNS[0], TURNS[1], {"role": "system", "content": "Be polite."}]
    text = ChatTemplate.of(tokenizer, "deepseek-v3").render(turns)
    assert text == f"{tokenizer.token(0)}Be brief.\n\nBe polite.{USER}How many?"


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_is_what_the_whole_conversation_begins_with(tokenizer: Tokenizer, name: str):
    template = ChatTemplate.of(tokenizer, name)
    prompt = template.encode_prompt(TURNS[:4])
    ids, mask = template.encode(TURNS)
    assert ids[: len(prompt)] == prompt
    assert all(mask[len(prompt) :])


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_role_that_a_template_cannot_write_is_refused(tokenizer: Tokenizer, name: str):
    turns = [*TURNS, {"role": "tool", "content": "42"}]
    with pytest.raises(DataError, match=r"the role tool is not system, user or assistant.*change"):
        ChatTemplate.of(tokenizer, name).render(turns)


def test_generation_tags_mark_the_answers(tokenizer: Tokenizer):
    template = ChatTemplate(TAGGED, tokenizer)
    eos = tokenizer.token(1)
    assert answers(template, TURNS) == f"72: 关关{eos} yes\n{eos}"
    assert "{" not in template.render(TURNS)
    assert "\ufdd0" not in template.render(TURNS)


def test_an_answer_that_does_not_continue_its_prompt_is_refused(tokenizer: Tokenizer):
    forgetful = "{% for m in messages %}{{ m.content if loop.last else '' }}{% endfor %}"
    with pytest.raises(DataError, match=r"does not continue the prompt with turn 3.*mark it with"):
        ChatTemplate(forgetful, tokenizer).encode(TURNS)


def test_a_template_stays_in_its_sandbox(tokenizer: Tokenizer):
    for source in (
        "{{ messages.__class__.__mro__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10**9) %}{% endfor %}",
    ):
        with pytest.raises(DataError, match="the chat template fails"):
            ChatTemplate(source, tokenizer).render(TURNS)


def test_a_template_that_fails_says_so(tokenizer: Tokenizer):
    for source in ("{{ nothing.at.all }}", "{% if %}", "{{ messages[0]['content'] + 1 }}"):
        with pytest.raises(DataError, match=r"fails on this conversation .* change the messages"):
            ChatTemplate(source, tokenizer).render(TURNS)
    with pytest.raises(DataError, match="not JSON serializable"):
        ChatTemplate("", tokenizer).render([{"role": "user", "content": object()}])


def test_a_template_may_ask_for_the_date(tokenizer: Tokenizer):
    template = ChatTemplate(
        "{{ strftime_now('%d %b %Y') }}", tokenizer, lambda: datetime(2025, 1, 2)
    )
    assert template.render(TURNS) == "02 Jan 2025"


PARITY = {
    **TEMPLATES,
    "tagged": TAGGED,
    "tools": "{{ messages | tojson }}{{ {'a': '<é>'} | tojson(indent=2) }}{{ tools is none }}",
    "controls": (
        "{% for m in messages %}{% if loop.index > 3 %}{% break %}{% endif %}\n"
        "    {% if m.role == 'system' %}\n{% continue %}\n    {% endif %}\n"
        "  {{- m['content'] | trim }}|{{ bos_token }}{{ pad_token }}\n{% endfor %}\n"
    ),
}


@pytest.mark.parity
@pytest.mark.parametrize("name", PARITY)
def test_a_template_means_what_it_does_in_transformers(
    tokenizer: Tokenizer, tmp_path: Path, name: str
):
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    template = ChatTemplate(PARITY[name], tokenizer)
    for count in range(1, len(TURNS) + 1):
        for prompt in (False, True):
            text = theirs.apply_chat_template(
                TURNS[:count],
                chat_template=PARITY[name],
                tokenize=False,
                add_generation_prompt=prompt,
            )
            assert template.render(TURNS[:count], add_generation_prompt=prompt) == text
    ids = theirs.apply_chat_template(TURNS, chat_template=PARITY[name])["input_ids"]
    assert template.tokenizer.encode(template.render(TURNS), special=True) == ids


@pytest.mark.parity
def test_answers_marked_by_tags_are_those_transformers_finds(tokenizer: Tokenizer, tmp_path: Path):
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    found = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        TURNS, chat_template=TAGGED, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = ChatTemplate(TAGGED, tokenizer).encode(TURNS)
    assert ids == found["input_ids"]
    assert mask == [bool(bit) for bit in found["assistant_masks"]]
