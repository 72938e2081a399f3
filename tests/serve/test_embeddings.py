"""An embedding is the mean of a text's last hidden states, of length 1, whoever else is served."""

from typing import Any

import openai
import pytest
import torch
from jobs import engine_of, pool_of
from served import N_BLOCKS, NAME
from torch import Tensor

from moesaic.config.infer import GenerateConfig
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import RequestError
from moesaic.infer.blocks import Held
from moesaic.infer.decoder import Fed, TorchDecoder, build_decoder
from moesaic.infer.job import Job, Stream
from moesaic.model.transformer import Transformer
from moesaic.serve.embedding import EmbeddingForm
from moesaic.serve.run import Server

TEXTS = ["To be, or not to be", "a", "First Citizen: you are all resolved " * 4]
ONCE = GenerateConfig(max_new_tokens=1)


def expected(model: Transformer, ids: list[int]) -> Tensor:
    with torch.no_grad():
        mean_D = model.hidden_states(torch.tensor([ids]))[0].double().mean(dim=0)
    return (mean_D / mean_D.norm()).float()


def embedding(stream: Stream) -> Tensor:
    [piece] = stream
    assert piece.embedding_D is not None
    return piece.embedding_D


@pytest.mark.parametrize("deterministic", [False, True])
def test_it_is_the_mean_of_the_hidden_states(
    model: Transformer, tokenizer: Tokenizer, deterministic: bool
):
    rows = [tokenizer.encode_prompt(text) for text in TEXTS]
    with engine_of(model, n_blocks=90, prefill_tokens=7, deterministic=deterministic) as engine:
        streams = [engine.submit(Job(tuple(row), ONCE, embeds=True)) for row in rows]
        written = engine.submit(Job(tuple(rows[0]), GenerateConfig(max_new_tokens=9)))
        again = engine.submit(Job(tuple(rows[0]), ONCE, embeds=True))
        for row, stream in zip([*rows, rows[0]], [*streams, again], strict=True):
            torch.testing.assert_close(embedding(stream), expected(model, row), atol=1e-5, rtol=0)
        assert len(list(written)) == 9
        assert engine.stats().meter.requests["complete"] == 4


def test_what_loses_its_room_is_read_anew(model: Transformer, tokenizer: Tokenizer):
    row = tokenizer.encode_prompt(TEXTS[2])
    with engine_of(model, n_blocks=len(row) // 4 + 8, prefill_tokens=8) as engine:
        written = [
            engine.submit(Job((5, 9 + i), GenerateConfig(max_new_tokens=40))) for i in range(2)
        ]
        late = engine.submit(Job(tuple(row), ONCE, priority=1, embeds=True))
        torch.testing.assert_close(embedding(late), expected(model, row), atol=1e-5, rtol=0)
        assert all(len(list(stream)) == 40 for stream in written)
        assert engine.stats().meter.tokens["prompt"] > 2 * 2 + len(row)


@pytest.mark.parametrize("form", ["torch", "the fastest"])
def test_a_decoder_gives_hidden_states_without_logits(model: Transformer, form: str):
    pool = pool_of(model)
    decoder = TorchDecoder(model, pool) if form == "torch" else build_decoder(model, pool)
    held, other = Held(pool), Held(pool)
    read, last = decoder.feed([Fed(held, (5, 9, 70), "hidden"), Fed(other, (5, 9, 70))])
    assert read.logits_TV.shape == (0, model.config.vocab_size)
    assert read.hidden_TD.shape == (3, model.config.hidden_size)
    torch.testing.assert_close(read.hidden_TD[-1:], last.hidden_TD, atol=1e-5, rtol=0)
    assert last.logits_TV.shape == (1, model.config.vocab_size)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({"input": []}, "input has 0 texts; give 1 to 2048"),
    "an empty one": ({"input": [[]]}, "input 0 has 0 tokens; this model embeds 1 to 511"),
    "too long": ({"input": ["a", "b " * 600]}, "input 1 has [0-9]+ tokens; this model embeds"),
    "fewer numbers": ({"input": "a", "dimensions": 8}, "dimensions=8 is not served.*out, for 32"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_embedded_is_refused(model: Transformer, tokenizer: Tokenizer, why: str):
    asked, message = REFUSED[why]
    with engine_of(model) as engine, pytest.raises(RequestError, match=message):
        EmbeddingForm.parse({"model": NAME, **asked}).jobs(tokenizer, engine)


@pytest.mark.slow
class TestOverHttp:
    @pytest.mark.parametrize("encoding", ["float", "base64", None])
    def test_a_client_gets_them_in_the_order_of_its_texts(
        self, client: openai.OpenAI, model: Transformer, tokenizer: Tokenizer, encoding: Any
    ):
        asked = {} if encoding is None else {"encoding_format": encoding}
        rows = [tokenizer.encode_prompt(text) for text in TEXTS]
        answer = client.embeddings.create(model=NAME, input=TEXTS, **asked)
        assert [each.index for each in answer.data] == [0, 1, 2]
        assert answer.usage.prompt_tokens == sum(map(len, rows)) == answer.usage.total_tokens
        if encoding != "base64":  # which the client reads by itself only where it chose it
            for each, row in zip(answer.data, rows, strict=True):
                found = torch.tensor(each.embedding)
                torch.testing.assert_close(found, expected(model, row), atol=1e-5, rtol=0)

    def test_ids_are_texts_too_and_there_may_be_many(
        self, client: openai.OpenAI, model: Transformer, server: Server
    ):
        one = client.embeddings.create(model=NAME, input=[5, 9, 70], dimensions=32)
        many = client.embeddings.create(model=NAME, input=[[5, 9, 70], [7, 8]] * 20)
        assert len(many.data) == 40
        for each in (one.data[0], *many.data[::2]):
            found = torch.tensor(each.embedding)
            torch.testing.assert_close(found, expected(model, [5, 9, 70]), atol=1e-5, rtol=0)
        assert server.served.engine.stats().blocks_free == N_BLOCKS

    def test_a_wrong_request_is_told_as_others_are(self, client: openai.OpenAI):
        with pytest.raises(openai.BadRequestError, match="dimensions=8 is not served"):
            client.embeddings.create(model=NAME, input="a", dimensions=8)
        with pytest.raises(openai.NotFoundError, match="there is no model 'other' here"):
            client.embeddings.create(model="other", input="a")
        with pytest.raises(openai.BadRequestError, match="id 9999"):
            client.embeddings.create(model=NAME, input=[9999])
