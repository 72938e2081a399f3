"""Texts written together are those that each prompt gets by itself."""

from collections.abc import Sequence

import pytest

from moesaic.config.infer import GenerateConfig
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import RequestError
from moesaic.eval import texts
from moesaic.eval.texts import shared_beginning, write_texts
from moesaic.infer.decoder import Fed, Found, TorchDecoder
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
    model: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    rows: list[int] = []

    class Counted(TorchDecoder):
        def feed(self, fed: Sequence[Fed]) -> list[Found]:
            rows.append(len(fed))
            return super().feed(fed)

    monkeypatch.setattr(texts, "build_decoder", Counted)
    many = [(*FEW[:3], 100 + n) for n in range(24)]
    asked = GenerateConfig(max_new_tokens=16, temperature=1.0, top_p=1.0, stop=("e", "o", "t"))
    found = write_texts(model, many, 0, tokenizer, asked)
    ends = [answer.tokens for answer in found]
    assert min(ends) < max(ends)
    assert rows == [sum(end > step for end in ends) for step in range(max(ends))]


def test_a_prompt_that_leaves_no_room_is_refused(model: Transformer, tokenizer: Tokenizer):
    with pytest.raises(RequestError, match="max_new_tokens"):
        write_texts(model, [FEW], 0, tokenizer, GenerateConfig(max_new_tokens=100))
