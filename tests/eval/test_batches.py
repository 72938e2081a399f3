"""Every row is in one batch, batches are bounded, and what rows begin with alike is fed once."""

from collections.abc import Sequence

import pytest

from moesaic.eval.batches import Batch, plan_batches


def fed(batches: Sequence[Batch], rows: Sequence[tuple[int, ...]]) -> int:
    """Tokens that pass through the model, without padding."""
    return sum(
        group.shared + sum(len(rows[row]) - group.shared for row in group.rows)
        for batch in batches
        for group in batch.groups
    )


def test_what_rows_begin_with_alike_is_fed_once() -> None:
    shots = tuple(range(100))
    rows = [(*shots, 200 + n, *range(n % 5)) for n in range(60)]
    batches = plan_batches(rows, [len(row) - 1 for row in rows], batch_tokens=1000)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(60))
    assert fed(batches, rows) < sum(map(len, rows)) / 8


@pytest.mark.parametrize("batch_tokens", [1, 50, 300, 100_000])
def test_a_batch_is_no_larger_than_allowed_and_every_row_is_in_one(batch_tokens: int) -> None:
    rows = [tuple(range(place % 3, place % 3 + 20 + place)) for place in range(50)]
    batches = plan_batches(rows, [len(row) - 1 for row in rows], batch_tokens)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(50))
    for batch in batches:
        ends = [len(rows[row]) - group.shared for group in batch.groups for row in group.rows]
        starts = max(group.shared for group in batch.groups) * len(batch.groups)
        assert len(ends) == 1 or starts + len(ends) * max(ends) <= batch_tokens


def test_nothing_is_asked_about_what_is_fed_once() -> None:
    rows = [(*range(50), last) for last in (60, 61, 62)]
    [batch] = plan_batches(rows, [30, 40, 50], batch_tokens=1000)
    assert [group.shared for group in batch.groups] == [30]


def test_a_beginning_that_saves_little_is_fed_with_every_row() -> None:
    rows = [(*range(20), *range(100 + 200 * n, 200 + 200 * n)) for n in range(4)]
    [batch] = plan_batches(rows, [119] * 4, batch_tokens=1000)
    assert [group.shared for group in batch.groups] == [0] * 4


def test_rows_of_like_lengths_are_filled_up_little() -> None:
    shots = tuple(range(200))
    rows = [(*shots, 300 + n, *range(n % 40)) for n in range(200)]
    batches = plan_batches(rows, [len(row) - 1 for row in rows], batch_tokens=1000)
    ends = [[len(rows[row]) - 200 for row in batch.rows] for batch in batches]
    filled = sum(max(batch) * len(batch) for batch in ends)
    assert filled < 1.3 * sum(map(sum, ends))


def test_a_row_longer_than_a_batch_is_fed_alone() -> None:
    rows = [tuple(range(500)), tuple(range(1, 11)), tuple(range(2, 12))]
    batches = plan_batches(rows, [499, 9, 9], batch_tokens=100)
    assert [batch.rows for batch in batches] == [[0], [1, 2]]
