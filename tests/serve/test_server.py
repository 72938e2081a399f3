"""The client of the OpenAI API gets from the server what the model gives."""

from collections.abc import Callable
from dataclasses import replace
from time import monotonic, sleep
from typing import Any

import httpx
import openai
import pytest
import torch
from served import N_BLOCKS, NAME, client_of, served

import moesaic
from moesaic.data.chat import ChatTemplate
from moesaic.data.tokenizer import Tokenizer
from moesaic.model.transformer import Transformer
from moesaic.serve.run import Server

TURNS: Any = [{"role": "user", "content": "To be or not to be?"}]


def wait_for(condition: Callable[[], bool]) -> None:
    end = monotonic() + 20
    while not condition():
        assert monotonic() < end
        sleep(0.01)


def is_idle(server: Server) -> bool:
    stats = server.served.engine.stats()
    return stats.blocks_free == N_BLOCKS and not stats.running + stats.waiting


@pytest.fixture
def chat_ids(tokenizer: Tokenizer) -> list[int]:
    return ChatTemplate.of(tokenizer).encode_prompt(TURNS)


def test_the_model_is_listed(client: openai.OpenAI):
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "moesaic"


def test_a_chat_is_answered_as_generate_does(
    client: openai.OpenAI, model: Transformer, tokenizer: Tokenizer, chat_ids: list[int]
):
    answer = client.chat.completions.create(
        model=NAME, messages=TURNS, max_tokens=20, temperature=0.8, top_p=0.9, seed=4
    )
    [alone] = moesaic.generate(
        model, [chat_ids], tokenizer, max_new_tokens=20, temperature=0.8, top_p=0.9, seed=4
    )
    assert answer.choices[0].message.content == alone.text
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(chat_ids)
    assert answer.usage.completion_tokens == 20
    assert answer.usage.total_tokens == len(chat_ids) + 20


def test_the_settings_say_how_a_chat_is_written_where_the_folder_does_not(
    model: Transformer, tokenizer: Tokenizer
):
    settings = {name: it for name, it in tokenizer.settings.items() if name != "chat_template"}
    bare = replace(tokenizer, settings=settings)
    asked: Any = {"model": NAME, "messages": [{"role": "user", "content": "hello"}]}
    with served(model, bare) as server, client_of(server) as client:
        message = "no chat template; .* or set chat_template"
        with pytest.raises(openai.BadRequestError, match=message):
            client.chat.completions.create(**asked)
    with served(model, bare, chat_template="deepseek-v3") as server, client_of(server) as client:
        answer = client.chat.completions.create(**asked, max_tokens=1)
    template = ChatTemplate.of(bare, "deepseek-v3")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(template.encode_prompt(asked["messages"]))


def test_a_chat_in_pieces_is_the_chat_at_once(client: openai.OpenAI):
    asked: Any = dict(model=NAME, messages=TURNS, max_tokens=24, seed=5)
    whole = client.chat.completions.create(**asked)
    events = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    said = [event.choices[0].delta.content or "" for event in events[:-1]]
    assert "".join(said) == whole.choices[0].message.content
    assert events[0].choices[0].delta.role == "assistant"
    assert [event.choices[0].finish_reason for event in events[:-1]][-1] == "length"
    assert events[-1].choices == []
    usage = events[-1].usage
    assert usage is not None
    assert usage.completion_tokens == 24


def test_prompts_are_continued_as_generate_does(
    client: openai.OpenAI, model: Transformer, tokenizer: Tokenizer
):
    prompts = ["First Citizen:", "You are"]
    answer = client.completions.create(
        model=NAME, prompt=prompts, max_tokens=9, temperature=0, stop=["z", "q"], n=2, seed=1
    )
    alone = moesaic.generate(
        model, prompts, tokenizer, max_new_tokens=9, temperature=0, stop=("z", "q")
    )
    texts = [choice.text for choice in answer.choices]
    assert texts == [alone[0].text, alone[0].text, alone[1].text, alone[1].text]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]


def test_ids_are_prompts_too_and_choices_of_one_differ(
    client: openai.OpenAI, model: Transformer, tokenizer: Tokenizer
):
    answer = client.completions.create(model=NAME, prompt=[5, 9, 70], max_tokens=8, n=2, seed=3)
    alone = moesaic.generate(
        model, [[5, 9, 70]] * 2, tokenizer, max_new_tokens=8, temperature=1.0, top_p=1.0, seed=3
    )
    assert [choice.text for choice in answer.choices] == [text.text for text in alone]
    assert answer.choices[0].text != answer.choices[1].text


def test_a_completion_in_pieces_keeps_its_choices_apart(client: openai.OpenAI):
    asked: Any = dict(model=NAME, prompt="To be", max_tokens=12, n=3, seed=8)
    whole = client.completions.create(**asked)
    texts = ["", "", ""]
    for event in client.completions.create(**asked, stream=True):
        texts[event.choices[0].index] += event.choices[0].text
    assert texts == [choice.text for choice in whole.choices]


def test_a_text_ends_before_its_stop(client: openai.OpenAI):
    asked: Any = dict(model=NAME, prompt="To be", max_tokens=40, seed=2)
    text = client.completions.create(**asked).choices[0].text
    stop = text[10:13]
    answer = client.completions.create(**asked, stop=stop)
    assert answer.choices[0].text == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_log_probabilities_of_a_chat(client: openai.OpenAI):
    answer = client.chat.completions.create(
        model=NAME, messages=TURNS, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 5
    for token in logprobs.content:
        assert token.logprob == token.top_logprobs[0].logprob < 0
        assert len(token.top_logprobs) == 3


def test_log_probabilities_of_a_completion(client: openai.OpenAI):
    answer = client.completions.create(
        model=NAME, prompt="To be", max_tokens=5, temperature=0, logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    for logprob, top in zip(logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert logprob == max(top.values())


def test_a_prompt_comes_back_with_its_probabilities_as_harnesses_ask_for_it(
    client: openai.OpenAI, model: Transformer, tokenizer: Tokenizer
):
    ids = tokenizer.encode_prompt("You are all resolved")
    answer = client.completions.create(
        model=NAME, prompt=ids, max_tokens=1, temperature=0, logprobs=1, echo=True
    )
    with torch.no_grad():
        logprobs = model(torch.tensor([ids]))[0].double().log_softmax(-1)
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.token_logprobs is not None
    assert told.top_logprobs is not None
    assert answer.choices[0].text.startswith("You are all resolved")
    expected = [float(logprobs[place, id_]) for place, id_ in enumerate(ids[1:])]
    assert told.token_logprobs[1:-1] == pytest.approx(expected, abs=1e-4)
    best = [max(top.values()) for top in told.top_logprobs[1:-1]]
    assert best == pytest.approx(logprobs[:-1].amax(-1).tolist(), abs=1e-4)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 1


def test_a_prompt_that_was_read_before_is_told_as_cached(client: openai.OpenAI):
    asked: Any = dict(model=NAME, prompt="a" * 80, max_tokens=1)
    client.completions.create(**asked)
    usage = client.completions.create(**asked).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 64


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": ({"temprature": 1}, "temprature is not a setting; did you mean 'temperature'"),
    "not served": ({"frequency_penalty": 0.5}, "frequency_penalty=0.5 is not served; leave"),
    "out of range": ({"temperature": 3}, "temperature=3 is not allowed"),
    "too many": ({"n": 17}, "1 prompts with n=17 make 17 answers, more than 16"),
    "too long": ({"max_tokens": 600}, "together more than max_position_embeddings=512"),
    "no messages": ({"messages": []}, "messages=[] is not allowed"),
    "a wrong role": ({"messages": [{"role": "king"}]}, "role='king' is not one of"),
    "a picture": (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "type='image_url' is not one of 'text'",
    ),
    "an empty stop": ({"stop": [""]}, "stop.0='' is not allowed"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_wrong_request_is_refused_and_tells_the_fix(client: openai.OpenAI, why: str):
    changes, message = REFUSED[why]
    with pytest.raises(openai.BadRequestError) as refused:
        client.post(
            "/chat/completions",
            body={"model": NAME, "messages": TURNS, **changes},
            cast_to=object,
        )
    assert message in str(refused.value)
    assert refused.value.type == "invalid_request_error"


def test_what_changes_nothing_may_be_said(client: openai.OpenAI):
    client.chat.completions.create(
        model=NAME, messages=TURNS, max_tokens=1, user="me", frequency_penalty=0.0, logit_bias={}
    )


def test_an_unknown_model_is_not_found(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt' here; ask for 'tiny'"):
        client.completions.create(model="gpt", prompt="a")


def test_a_wrong_path_has_an_error_in_the_same_form(plain: httpx.Client):
    answer = plain.get("/v1/nothing")
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "GET /v1/nothing: Not Found"


def test_a_client_that_goes_away_gives_all_blocks_back(server: Server, client: openai.OpenAI):
    stream = client.completions.create(model=NAME, prompt="To", max_tokens=500, stream=True)
    next(iter(stream))
    assert not is_idle(server)
    stream.close()
    wait_for(lambda: is_idle(server))
    with pytest.raises(openai.APITimeoutError):
        client.completions.create(model=NAME, prompt="To", max_tokens=500, n=8, timeout=0.1)
    wait_for(lambda: is_idle(server))
    assert server.served.engine.stats().meter.requests["cancelled"] >= 2


def test_metrics_are_those_of_the_engine(
    server: Server, client: openai.OpenAI, plain: httpx.Client
):
    client.completions.create(model=NAME, prompt="To", max_tokens=3)
    wait_for(lambda: is_idle(server))
    lines = plain.get("/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    meter = server.served.engine.stats().meter
    assert int(values["moesaic_cache_blocks_free"]) == N_BLOCKS
    assert int(values['moesaic_tokens_total{kind="drawn"}']) == meter.tokens["drawn"] > 0
    assert int(values["moesaic_first_token_seconds_count"]) > 0
    assert (
        values['moesaic_next_token_seconds_bucket{le="+Inf"}']
        == values["moesaic_next_token_seconds_count"]
    )
    assert plain.get("/health").json() == {"status": "ok"}
