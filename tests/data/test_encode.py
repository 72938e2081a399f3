from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from moesaic.config.data import DataConfig
from moesaic.data.batch import IGNORED
from moesaic.data.bpe import train_bpe
from moesaic.data.documents import Document
from moesaic.data.encode import Encoded, Encoder
from moesaic.data.seeds import generator_for
from moesaic.data.special import SpecialTokens, special_token
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import DataError

BOS, EOS = 0, 1
CHAT = Document(
    messages=(
        {"role": "user", "content": "how many?"},
        {"role": "assistant", "content": "72"},
        {"role": "user", "content": "sure?"},
        {"role": "assistant", "content": "yes"},
    ),
    where="f:9",
)


@pytest.fixture
def encode(tokenizer: Tokenizer) -> Callable[..., list[Encoded]]:
    def encode(*documents: Document, tokenizer: Tokenizer = tokenizer, **settings: object):
        config = DataConfig.parse({"sources": [{"path": "a"}], "seq_len": 8, **settings})
        generators = [generator_for(number) for number in range(len(documents))]
        return Encoder(config, tokenizer).encode(documents, generators)

    return encode


def learned(document: Encoded, tokenizer: Tokenizer) -> str:
    """The text of all labels, special tokens included."""
    labels = document.labels_S[document.labels_S != IGNORED].tolist()
    return tokenizer.decode(labels, skip_special=False)


def test_a_text_stands_between_bos_and_eos_and_every_token_after_the_first_is_learned(
    encode, tokenizer: Tokenizer
):
    ids = tokenizer.encode("the experts")
    [document] = encode(Document("the experts"))
    assert document.ids_S.tolist() == [BOS, *ids]
    assert document.labels_S.tolist() == [*ids, EOS]
    assert len(document) == len(ids) + 1


def test_without_bos_in_prompts_there_is_none_in_documents(encode, tokenizer: Tokenizer):
    bare = replace(tokenizer, settings={**tokenizer.settings, "add_bos_token": False})
    ids = tokenizer.encode("the experts")
    [document] = encode(Document("the experts"), tokenizer=bare)
    assert document.ids_S.tolist() == ids
    assert document.labels_S.tolist() == [*ids[1:], EOS]
    [empty] = encode(Document(""), tokenizer=bare)
    assert len(empty) == 0


def test_of_a_pair_only_the_completion_is_learned_when_answers_are(encode, tokenizer: Tokenizer):
    pair = Document(" 72", prompt="48 + 24 =")
    [document] = encode(pair, loss_on="answers")
    assert learned(document, tokenizer) == " 72" + tokenizer.token(EOS)
    [whole] = encode(pair)
    assert whole.ids_S.equal(document.ids_S)
    assert learned(whole, tokenizer) == "48 + 24 = 72" + tokenizer.token(EOS)


@pytest.mark.parametrize("template", ["deepseek-v2", "deepseek-v3"])
def test_of_a_conversation_only_what_the_assistant_says_is_learned(
    encode, tokenizer: Tokenizer, template: str
):
    eos, space = tokenizer.token(EOS), " " if template == "deepseek-v2" else ""
    [document] = encode(CHAT, chat_template=template, loss_on="answers")
    assert learned(document, tokenizer) == f"{space}72{eos}{space}yes{eos}"
    [whole] = encode(CHAT, chat_template=template)
    assert whole.ids_S.equal(document.ids_S)
    assert not (whole.labels_S == IGNORED).any()


def test_plain_texts_have_no_answers(encode):
    with pytest.raises(DataError, match=r"f:1: a plain text has no answer.*set loss_on to 'all'"):
        encode(Document("text", where="f:1"), loss_on="answers")


def test_a_conversation_without_an_answer_is_refused_where_answers_are_learned(encode):
    turns = Document(messages=({"role": "user", "content": "how many?"},), where="f:7")
    settings = {"chat_template": "deepseek-v2"}
    assert encode(turns, **settings)
    with pytest.raises(
        DataError, match=r"f:7: the conversation has no answer.*a turn of the assis"
    ):
        encode(turns, **settings, loss_on="answers")


def test_the_completion_of_a_pair_is_encoded_by_itself(encode, tokenizer: Tokenizer):
    [document] = encode(Document("erts", prompt="the exp"), loss_on="answers")
    assert learned(document, tokenizer) == "erts" + tokenizer.token(EOS)
    assert document.ids_S.tolist() == [BOS, *tokenizer.encode("the exp"), *tokenizer.encode("erts")]


def test_conversations_need_a_template(encode):
    message = (
        "the tokenizer has no chat template; add .* or set chat_template, in a run file that of"
    )
    with pytest.raises(DataError, match=message):
        encode(CHAT)


def test_kinds_of_documents_can_be_mixed(encode):
    kinds = [Document("a"), CHAT, Document("b", prompt="c"), CHAT, Document("d")]
    together = encode(*kinds, chat_template="deepseek-v3")
    for document, kind in zip(together, kinds, strict=True):
        [alone] = encode(kind, chat_template="deepseek-v3")
        assert alone.ids_S.equal(document.ids_S)
        assert alone.labels_S.equal(document.labels_S)


def test_filling_in_rearranges_plain_texts_only(encode, tokenizer: Tokenizer):
    text, pair = Document("send every token"), Document("72", prompt="48 + 24 = ")
    document, other = encode(text, pair, fim_rate=1.0)
    ids = [*document.ids_S.tolist(), EOS]
    begin, hole, end = (
        tokenizer.token_id(special_token(f"fim {part}")) for part in ("begin", "hole", "end")
    )
    assert ids[:2] == [BOS, begin]
    prefix = tokenizer.decode(ids[2 : ids.index(hole)])
    suffix = tokenizer.decode(ids[ids.index(hole) + 1 : ids.index(end)])
    middle = tokenizer.decode(ids[ids.index(end) + 1 : -1])
    assert prefix + middle + suffix == text.text
    assert document.labels_S.tolist() == ids[1:]
    assert other.ids_S.equal(encode(pair)[0].ids_S)


def test_filling_in_needs_its_tokens(encode):
    plain = train_bpe(["ab"], 259, SpecialTokens(bos="<s>", eos="</s>", pad="<pad>"))
    with pytest.raises(DataError, match=r"fim▁begin.* is not in the tokenizer's vocabulary"):
        encode(Document("ab"), tokenizer=plain, fim_rate=0.1)


def test_generators_depend_on_their_numbers_alone():
    draws = [torch.rand((), generator=generator_for(*seed)) for seed in ((1, 2), (1, 2), (12,))]
    assert draws[0] == draws[1] != draws[2]
