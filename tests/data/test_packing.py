"""Packing changes where a token stands, never what is learned of it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moesaic.data.batch import IGNORED, Batch
from moesaic.data.encode import Encoded
from moesaic.data.packing import Packer, Row, batch_of

PAD = 999

documents = st.lists(st.lists(st.integers(0, 50), max_size=12), max_size=8)


def encoded(tokens: list[int]) -> Encoded:
    """A document whose tokens divisible by 5 are not learned."""
    labels = [IGNORED if token % 5 == 0 else token for token in tokens[1:]]
    return Encoded(
        torch.tensor(tokens[:-1], dtype=torch.int64), torch.tensor(labels, dtype=torch.int64)
    )


def rows_of(texts: list[list[int]], seq_len: int, packing: bool = True) -> list[Row]:
    stream = iter([encoded(text) for text in texts])
    packer = Packer(lambda: next(stream, None), seq_len, PAD, packing)
    return list(iter(packer.row, None))


def pieces_of(row: Row) -> list[tuple[list[int], list[int]]]:
    """Inputs and labels of each document of a row, without padding."""
    ids, labels = row.ids_S.tolist(), row.labels_S.tolist()
    pieces: list[tuple[list[int], list[int]]] = []
    for index, document in enumerate(row.documents_S.tolist()):
        if document == len(pieces):
            pieces.append(([], []))
        pieces[document][0].append(ids[index])
        pieces[document][1].append(labels[index])
    return [piece for piece in pieces if piece[0][0] != PAD]


@given(documents, st.integers(1, 9), st.booleans())
def test_packing_loses_no_token_and_no_label(texts, seq_len: int, packing: bool):
    pieces = [piece for row in rows_of(texts, seq_len, packing) for piece in pieces_of(row)]
    inputs = [token for ids, _ in pieces for token in ids]
    labels = [label for _, some in pieces for label in some]
    separate = [encoded(text) for text in texts]
    assert inputs == [token for text in separate for token in text.ids_S.tolist()]
    assert labels == [label for text in separate for label in text.labels_S.tolist()]


@given(documents, st.integers(1, 9))
def test_every_label_is_the_next_token_of_the_same_document(texts, seq_len: int):
    for row in rows_of(texts, seq_len):
        for ids, labels in pieces_of(row):
            for label, following in zip(labels, ids[1:], strict=False):
                assert label == (IGNORED if following % 5 == 0 else following)


@given(documents, st.integers(1, 9), st.booleans())
def test_positions_restart_with_every_document(texts, seq_len: int, packing: bool):
    for row in rows_of(texts, seq_len, packing):
        of_row = row.documents_S.tolist()
        assert of_row == sorted(of_row)
        assert set(of_row) == set(range(of_row[-1] + 1))
        for index, position in enumerate(row.positions_S.tolist()):
            starts = index == 0 or of_row[index] != of_row[index - 1]
            assert position == (0 if starts else row.positions_S[index - 1] + 1)


@given(documents, st.integers(1, 9))
def test_only_the_last_packed_row_has_padding(texts, seq_len: int):
    rows = rows_of(texts, seq_len)
    assert not any((row.ids_S == PAD).any() for row in rows[:-1])
    assert len(rows) == -(-sum(max(len(text) - 1, 0) for text in texts) // seq_len)


@given(documents, st.integers(1, 9))
def test_without_packing_every_document_begins_a_row(texts, seq_len: int):
    rows = rows_of(texts, seq_len, packing=False)
    assert len(rows) == sum(-(-max(len(text) - 1, 0) // seq_len) for text in texts)
    assert all(len(pieces_of(row)) == 1 for row in rows)


def test_padding_is_a_document_of_its_own_with_nothing_to_learn():
    [row] = rows_of([[1, 2, 3]], 5)
    assert row.ids_S.tolist() == [1, 2, PAD, PAD, PAD]
    assert row.labels_S.tolist() == [2, 3, IGNORED, IGNORED, IGNORED]
    assert row.documents_S.tolist() == [0, 0, 1, 1, 1]
    assert row.positions_S.tolist() == [0, 1, 0, 1, 2]


def test_a_document_that_is_cut_goes_on_as_a_document_of_its_own():
    first, second = rows_of([[1, 2, 3, 4], [6, 7, 8]], 2)[:2]
    assert (first.ids_S.tolist(), first.labels_S.tolist()) == ([1, 2], [2, 3])
    assert (second.ids_S.tolist(), second.labels_S.tolist()) == ([3, 6], [4, 7])
    assert second.positions_S.tolist() == [0, 0]


@given(documents.filter(lambda texts: any(len(text) > 1 for text in texts)), st.integers(1, 9))
def test_a_packer_restarts_between_any_two_rows(texts, seq_len: int):
    whole = rows_of(texts, seq_len)
    stream, drawn = iter([encoded(text) for text in texts]), []

    def draw() -> Encoded | None:
        drawn.append(next(stream, None))
        return drawn[-1]

    packer = Packer(draw, seq_len, PAD)
    for index in range(len(whole)):
        rest = iter(drawn[-1:] + [encoded(text) for text in texts[len(drawn) :]])
        if not packer.used:
            rest = iter([encoded(text) for text in texts[len(drawn) :]])
        again = Packer(lambda rest=rest: next(rest, None), seq_len, PAD)
        again.restart(packer.used)
        for row, other in zip(whole[index:], iter(again.row, None), strict=True):
            assert row.ids_S.equal(other.ids_S)
            assert row.labels_S.equal(other.labels_S)
            assert row.documents_S.equal(other.documents_S)
        packer.row()


@pytest.fixture
def batch() -> Batch:
    return batch_of(rows_of([[1, 2, 3, 4, 5, 6], [7, 8, 9]], 2))


def test_a_batch_counts_its_labels_and_can_be_cut_by_rows(batch: Batch):
    assert batch.ids_BS.shape == (4, 2)
    assert batch.learned == 6  # eight positions: the label 5 is not learned, and one is padding
    parts = [batch.rows(0, 3), batch.rows(3, 4)]
    assert [part.learned for part in parts] == [5, 1]
    assert torch.cat([part.ids_BS for part in parts]).equal(batch.ids_BS)


def test_a_batch_moves_to_a_device_whole(batch: Batch):
    moved = batch.to("meta")
    for name in ("ids_BS", "labels_BS", "positions_BS", "documents_BS"):
        assert getattr(moved, name).device.type == "meta"
        assert getattr(moved, name).shape == (4, 2)
