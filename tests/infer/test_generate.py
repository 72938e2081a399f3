"""Generation is the model's own next-token choice, whatever the batch and however it is cached."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import moesaic
from moesaic.config.infer import Speculate
from moesaic.config.model import ModelConfig
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import ConfigError, MoesaicError, RequestError
from moesaic.infer.generate import stream
from moesaic.model.build import build_model
from moesaic.model.transformer import Transformer

Config = Callable[..., ModelConfig]
PROMPTS = [[5, 9, 2], [7], [3, 1, 4, 1, 5, 9, 2, 6]]


@torch.no_grad()
def argmax_loop(model: Transformer, prompt: list[int], n_new: int) -> tuple[int, ...]:
    ids = list(prompt)
    for _ in range(n_new):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_greedy_text_of_any_batch_is_the_argmax_without_cache(
    tiny_config: Config, family: str
) -> None:
    model = build_model(tiny_config(family, eos_token_id=None), seed=3)
    written = moesaic.generate(model, PROMPTS, max_new_tokens=10, temperature=0)
    assert [text.ids for text in written] == [argmax_loop(model, p, 10) for p in PROMPTS]
    assert [text.prompt_ids for text in written] == [tuple(p) for p in PROMPTS]


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_a_prompt_is_continued_in_a_batch_as_it_is_alone(tiny_config: Config, family: str) -> None:
    model = build_model(tiny_config(family), seed=3)
    together = moesaic.generate(model, PROMPTS, max_new_tokens=20, seed=10)
    alone = [
        moesaic.generate(model, [prompt], max_new_tokens=20, seed=10 + place)[0]
        for place, prompt in enumerate(PROMPTS)
    ]
    assert together == alone


def test_a_seed_reproduces_and_another_does_not(model: Transformer) -> None:
    first, again, other = (
        moesaic.generate(model, [[4, 5]], max_new_tokens=20, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_copies_of_a_prompt_give_different_texts(model: Transformer) -> None:
    first, second = moesaic.generate(model, [[4, 5]] * 2, max_new_tokens=20)
    assert first.ids != second.ids


def test_a_folder_is_continued_with_its_own_tokenizer(
    folder: Path, model: Transformer, tokenizer: Tokenizer
) -> None:
    [text] = moesaic.generate(folder, "one two", max_new_tokens=8)
    assert [text] == moesaic.generate(model, ["one two"], tokenizer, max_new_tokens=8)
    assert list(text.prompt_ids) == tokenizer.encode_prompt("one two")
    assert text.text == tokenizer.decode(text.ids)


def test_text_ends_with_the_token_that_ends_texts(model: Transformer) -> None:
    free = moesaic.generate(model, [[4, 5]], max_new_tokens=10)[0]
    assert free.ending == "length"
    assert len(free.ids) == 10
    ended = model.config.changed(eos_token_id=free.ids[4])
    model.config = ended
    text = moesaic.generate(model, [[4, 5]], max_new_tokens=10)[0]
    assert text.ids == free.ids[: free.ids.index(free.ids[4]) + 1]
    assert text.ending == "eos"


def test_texts_that_end_early_do_not_change_the_others(model: Transformer) -> None:
    free = moesaic.generate(model, PROMPTS, max_new_tokens=12)
    model.config = model.config.changed(eos_token_id=free[1].ids[2])
    texts = moesaic.generate(model, PROMPTS, max_new_tokens=12)
    for text, whole in zip(texts, free, strict=True):
        assert text.ids == whole.ids[: len(text.ids)]
        assert text.ending == ("length" if len(text.ids) == 12 else "eos")


def test_a_stop_text_ends_the_text_before_it(model: Transformer, tokenizer: Tokenizer) -> None:
    free = moesaic.generate(model, "one", tokenizer, max_new_tokens=12)[0]
    stop = tokenizer.decode(free.ids[5:7])
    text = moesaic.generate(model, "one", tokenizer, max_new_tokens=12, stop=[stop])[0]
    assert text.ending == "stop"
    assert text.text == free.text[: free.text.index(stop)]
    assert len(text.ids) <= 7


def test_streamed_pieces_are_the_generated_text(model: Transformer, tokenizer: Tokenizer) -> None:
    prompts = ["one two", "three"]
    whole = moesaic.generate(model, prompts, tokenizer, max_new_tokens=15)
    pieces = list(stream(model, prompts, tokenizer, max_new_tokens=15))
    for place, text in enumerate(whole):
        mine = [piece for piece in pieces if piece.prompt == place]
        assert "".join(piece.text for piece in mine) == text.text
        assert tuple(piece.token for piece in mine) == text.ids
        assert [piece.ending for piece in mine] == [None] * 14 + ["length"]


def test_bfloat16_generates_in_a_batch_too(tiny_config: Config) -> None:
    model = build_model(tiny_config("v2"), dtype="bfloat16")
    assert len(moesaic.generate(model, PROMPTS, max_new_tokens=5)) == 3


def test_the_whole_context_can_be_used(tiny_config: Config) -> None:
    model = build_model(tiny_config("v2", eos_token_id=None))
    [text] = moesaic.generate(model, [[1] * 120], max_new_tokens=8)
    assert len(text.ids) == 8


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([], {}, "no prompt was given; give at least one"),
        (
            [[1], []],
            {"max_new_tokens": 1},
            "prompt 1 is empty; give at least one token to go on from",
        ),
        (
            [[1, 64]],
            {"max_new_tokens": 1},
            "prompt 0 has id 64 at position 1, vocab_size=64 allows 0 to 63; use the tokenizer "
            "that belongs to the model",
        ),
        (
            [[1] * 120],
            {"max_new_tokens": 9},
            "prompt 0 has 120 tokens and max_new_tokens=9: together more than "
            "max_position_embeddings=128; lower max_new_tokens to 8",
        ),
        (
            [[1] * 128],
            {"max_new_tokens": 9},
            "prompt 0 has 128 tokens and max_new_tokens=9: together more than "
            "max_position_embeddings=128; shorten the prompt",
        ),
        ("one", {}, "prompt 0 is a text and needs a tokenizer; give tokenizer, or ids"),
        ([7], {}, "prompt 0 is 7; give a text, or a list of integer ids"),
        ([[0.5]], {}, "prompt 0 is [0.5]; give a text, or a list of integer ids"),
        (
            [[1]],
            {"stop": ["x"]},
            "stop=('x',) needs a tokenizer; give tokenizer, or leave stop out",
        ),
    ],
)
def test_a_request_that_cannot_be_served_says_why(
    tiny_config: Config, prompts: list[list[int]], settings: dict[str, Any], message: str
) -> None:
    model = build_model(tiny_config("v2"))
    with pytest.raises(RequestError) as error:
        stream(model, prompts, **settings)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 3}, "max_tokens is not a setting; did you mean 'max_new_tokens'?"),
        ({"temperature": -1.0}, "temperature=-1.0 "),
        ({"top_p": 0.0}, "top_p=0.0 "),
        ({"top_k": 0}, "top_k=0 "),
        ({"stop": [""]}, "stop"),
    ],
)
def test_a_wrong_setting_is_named(
    tiny_config: Config, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        moesaic.generate(build_model(tiny_config("v2")), [[1]], **settings)
    assert message in str(error.value)


def test_a_folder_without_tokenizer_continues_ids(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert moesaic.generate(folder, [[4, 5]], max_new_tokens=3)[0].text == ""
    with pytest.raises(RequestError, match="prompt 0 is a text and needs a tokenizer"):
        moesaic.generate(folder, "one")


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(MoesaicError, match="nowhere"):
        moesaic.generate(tmp_path / "nowhere", "one")


def test_each_text_of_a_batch_follows_the_form_as_it_does_alone(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    form = {"regex": "[a-c]{2,9}(yes|no)"}
    prompts = ["one", "two two", "a"]
    asked: dict[str, Any] = {"structured_outputs": form, "max_new_tokens": 20}
    together = moesaic.generate(model, prompts, tokenizer, **asked)
    assert all(re.fullmatch(form["regex"], text.text) for text in together)
    for place, (prompt, text) in enumerate(zip(prompts, together, strict=True)):
        [alone] = moesaic.generate(model, prompt, tokenizer, seed=place, **asked)
        assert (alone.text, alone.ending) == (text.text, text.ending)
    assert len({text.text for text in together}) > 1


def test_a_form_needs_a_tokenizer(model: Transformer) -> None:
    with pytest.raises(RequestError, match="needs a tokenizer; give tokenizer, or leave struct"):
        moesaic.generate(model, [[1, 2]], structured_outputs={"regex": "a"})


@pytest.mark.parametrize("speculate", ["always", "auto"])
def test_drafts_keep_to_a_form_too(
    model: Transformer, tokenizer: Tokenizer, speculate: Speculate
) -> None:
    asked: dict[str, Any] = {"structured_outputs": {"regex": "[ab]{3,9}"}, "max_new_tokens": 8}
    prompts = ["a", "two", "one one"]
    plain = moesaic.generate(model, prompts, tokenizer, **asked)
    drafted = moesaic.generate(model, prompts, tokenizer, speculate=speculate, **asked)
    assert [text.ids for text in drafted] == [text.ids for text in plain]
    assert all(re.fullmatch("[ab]{3,8}", text.text) for text in drafted)
    assert sum(text.speculation.accepted for text in drafted if text.speculation) > 0
