"""Streamed text is the text, in pieces that never have to be taken back."""

from hypothesis import given
from hypothesis import strategies as st

from moesaic.data.bpe import train_bpe
from moesaic.infer.text import TextStream

TOKENIZER = train_bpe(["one two three four five, " * 20], 300)
any_ids = st.lists(st.integers(0, 299), max_size=30)


def pieces(ids: list[int], *stop: str) -> list[str]:
    stream = TextStream(TOKENIZER, stop)
    out = []
    for token in ids:
        out.append(stream.push(token))
        if stream.stopped:
            break
    return [*out, stream.finish()]


@given(any_ids)
def test_the_pieces_of_any_tokens_are_their_text(ids: list[int]) -> None:
    assert "".join(pieces(ids)) == TOKENIZER.decode(ids)


@given(st.text(max_size=20))
def test_no_piece_ends_inside_a_character(text: str) -> None:
    clean = text.replace("\ufffd", "")
    streamed = pieces(TOKENIZER.encode(clean))
    assert "".join(streamed) == clean
    assert not any("\ufffd" in piece for piece in streamed)


def test_a_character_comes_out_with_its_last_byte() -> None:
    ids = TOKENIZER.encode("né")
    assert pieces(ids) == ["n", "", "é", ""]


def test_an_unfinished_character_comes_out_at_the_end_as_a_replacement() -> None:
    assert pieces(TOKENIZER.encode("aé")[:-1]) == ["a", "", "\ufffd"]


@given(any_ids, st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=3))
def test_text_ends_before_the_first_stop(ids: list[int], stops: list[str]) -> None:
    whole = TOKENIZER.decode(ids)
    found = [place for place in map(whole.find, stops) if place >= 0]
    streamed = "".join(pieces(ids, *stops))
    assert streamed == (whole[: min(found)] if found else whole)


def test_what_could_begin_a_stop_is_held_back_until_it_is_not_one() -> None:
    ids = TOKENIZER.encode("a##b###")
    assert [TOKENIZER.decode([id_]) for id_ in ids] == ["a", "#", "#", "b", "#", "#", "#"]
    assert pieces(ids, "###") == ["a", "", "", "##b", "", "", "", ""]
    assert pieces(ids, "##b") == ["a", "", "", "", ""]


def test_a_prefix_of_a_stop_comes_out_when_no_more_follows() -> None:
    assert pieces(TOKENIZER.encode("a##"), "###") == ["a", "", "", "##"]


def test_special_tokens_have_no_text() -> None:
    assert "".join(pieces([0, *TOKENIZER.encode("one"), 1])) == "one"
