"""Texts written together are those that each prompt gets by itself."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import random_model

from moesaic.config.infer import GenerateConfig
from moesaic.config.model import ModelConfig
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import RequestError
from moesaic.eval.texts import shared_beginning, write_texts
from moesaic.infer.generate import generate
from moesaic.model.transformer import Transformer

FEW = tuple(range(10, 80))
PROMPTS = [(*FEW, *(100 + n for n in range(length))) for length in (1, 9, 4)]


@pytest.mark.parametrize(
    ("rows", "shared"),
    [
        (PROMPTS, 64),
        ([FEW, FEW], 64),
        ([FEW[:64], FEW], 32),  # one token of each is fed by itself
        ([FEW, (1, *FEW)], 0),
        ([FEW[:40], FEW[:20]], 0),
        ([FEW], 0),
    ],
)
def test_a_beginning_is_shared_in_whole_blocks(rows: list[tuple[int, ...]], shared: int):
    assert shared_beginning(rows) == shared


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("shared", [0, 64])
def test_texts_are_those_of_each_prompt_alone(
    model: Transformer, tokenizer: Tokenizer, temperature: float, shared: int
):
    config = GenerateConfig(
        max_new_tokens=12, temperature=temperature, top_p=1.0, seed=3, stop=("e", "two")
    )
    found = write_texts(model, PROMPTS, shared, tokenizer, config)
    for place, row in enumerate(PROMPTS):
        settings = {**config.model_dump(), "seed": 3 + place}
        [alone] = generate(model, [row], tokenizer, **settings)
        assert (found[place].text, found[place].tokens) == (alone.text, len(alone.ids))


def test_a_text_that_has_ended_is_fed_no_more(
    tiny_config: Callable[..., ModelConfig], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    model = random_model(tiny_config("v2", vocab_size=300))
    fed: list[int] = []
    inner = model.hidden_states

    def counted(ids_BS: torch.Tensor, *others: Any, **more: Any) -> torch.Tensor:
        fed.append(len(ids_BS))
        return inner(ids_BS, *others, **more)

    monkeypatch.setattr(model, "hidden_states", counted)
    many = [(*FEW[:3], 100 + n) for n in range(24)]  # more than go through the compiled form
    asked = GenerateConfig(max_new_tokens=16, temperature=1.0, top_p=1.0, stop=("e", "o", "t"))
    found = write_texts(model, many, 0, tokenizer, asked)
    ends = sorted(answer.tokens for answer in found)
    assert ends[0] < ends[-1]
    expected = [sum(end > step for end in ends) for step in range(ends[-1])]
    assert fed == [rows for rows in expected if rows > 16] or fed == expected


def test_a_prompt_that_leaves_no_room_is_refused(model: Transformer, tokenizer: Tokenizer):
    with pytest.raises(RequestError, match="max_new_tokens"):
        write_texts(model, [FEW], 0, tokenizer, GenerateConfig(max_new_tokens=100))
