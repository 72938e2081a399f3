import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.data.documents import Document, document_from_row
from moesaic.errors import DataError


def test_a_row_is_a_conversation_a_pair_or_a_text():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    row = {"messages": turns, "prompt": "p", "completion": "c", "text": "t"}
    assert document_from_row(row, "text", "f:1") == Document(messages=tuple(turns), where="f:1")
    del row["messages"]
    assert document_from_row(row, "text", "f:1") == Document("c", prompt="p", where="f:1")
    row["completion"] = None
    assert document_from_row(row, "text", "f:1") == Document("t", where="f:1")
    assert document_from_row({"body": "b"}, "body", "f:1") == Document("b", where="f:1")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "f:1: the row is a list; it should be a JSON object"),
        ({"body": "b", "id": 1}, "there is no 'text'; set the source's `field` to one of body, id"),
        ({"text": None}, "'text' is null; it should be text, or `field` name another"),
        ({"text": 3}, "'text' is a number; it should be text"),
        ({"prompt": {}, "completion": "c"}, "'prompt' is an object"),
        ({"messages": []}, "'messages' is an empty list; it should be a list of turns"),
        ({"messages": [{"content": "c"}]}, "a turn in 'messages' has no role; write it as"),
        ({"text": "\ud800"}, "half of a surrogate pair .* repair the row"),
    ],
)
def test_a_row_that_is_no_document_is_named(row: object, message: str):
    with pytest.raises(DataError, match=message):
        document_from_row(row, "text", "f:1")


@given(st.text(), st.floats(0, 1))
def test_every_document_is_in_exactly_one_split(text: str, share: float):
    document = Document(text)
    assert document.is_in("train", share) != document.is_in("held_out", share)
    assert document.is_in("all", share)


def test_the_held_out_share_is_kept_and_grows_by_adding_documents():
    documents = [Document(f"text {number}") for number in range(4000)]
    some = {text.text for text in documents if text.is_in("held_out", 0.05)}
    more = {text.text for text in documents if text.is_in("held_out", 0.1)}
    assert 140 < len(some) < 260  # 200 ± 4 standard deviations
    assert some < more
    assert not any(text.is_in("held_out", 0.0) for text in documents)


def test_copies_are_on_one_side_wherever_they_stand():
    row = {"messages": [{"role": "user", "content": "hello"}]}
    here, there = document_from_row(row, "text", "a:1"), document_from_row(row, "text", "b:9")
    assert here.content == there.content == json.dumps(row["messages"], sort_keys=True)
    assert here.spoken == "hello"
