"""Rows of ids in batches of bounded size; what rows begin with alike is fed once.

The continuations of one question share its text, and the questions of one subject their worked
examples: with five of them nine tenths of MMLU are repetition.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from moesaic.eval.encode import Ids

_SHORTEST = 16
"""Tokens that a shared beginning has at least; a second pass for fewer would cost more."""
_LEAST_SAVED = 0.25
"""Share of a group's tokens that must be saved."""
_SPREAD = 4
"""Rows in a batch, beginnings counted with each, may be this many times what is fed at once: only
attention sees that, not the experts."""


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that begin alike."""

    shared: int
    """Tokens they begin with that are fed once; 0 for a row by itself."""
    rows: tuple[int, ...]
    """Places of the rows."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Groups that are fed together: all of them with a shared beginning, or none."""

    groups: tuple[Group, ...]

    @property
    def rows(self) -> list[int]:
        """Places of the rows, group by group."""
        return [row for group in self.groups for row in group.rows]

    @property
    def group_of_row(self) -> list[int]:
        """For each of these the place of its group."""
        return [place for place, group in enumerate(self.groups) for _ in group.rows]

    @property
    def is_shared(self) -> bool:
        """Whether beginnings are fed once for several rows."""
        return self.groups[0].shared > 0


def plan_batches(rows: Sequence[Ids], free: Sequence[int], batch_tokens: int) -> list[Batch]:
    """Every row once, longest first.

    Args:
        rows: what is to be fed; no two are the same.
        free: for each how many tokens of its beginning nothing is asked about.
        batch_tokens: most tokens fed at once, padding included; a longer row is fed alone.
    """
    groups = [part for group in _grouped(rows, free) for part in _parts(group, rows, batch_tokens)]
    alone = [Group(0, (row,)) for group in groups if not group.shared for row in group.rows]
    shared = [group for group in groups if group.shared]
    return [
        Batch(tuple(filled))
        for kind in (shared, alone)
        for filled in _filled(
            sorted(kind, key=lambda group: _order(group, rows)), rows, batch_tokens
        )
    ]


def _order(group: Group, rows: Sequence[Ids]) -> tuple[int, int]:
    """Groups of like lengths follow one another: what is not shared is filled up in every row."""
    return -_longest(group, rows), -group.shared


def _longest(group: Group, rows: Sequence[Ids]) -> int:
    """Tokens of the longest row after what is shared."""
    return max(len(rows[row]) for row in group.rows) - group.shared


def _grouped(rows: Sequence[Ids], free: Sequence[int]) -> Iterator[Group]:
    """Rows that begin alike, as long as together they save tokens.

    In the order of their ids, rows with long common beginnings are neighbours. A row joins those
    before it if all of them then repeat no more than they would without it.
    """
    members: list[int] = []
    shared = 0
    for row in sorted(range(len(rows)), key=rows.__getitem__):
        if members:
            most = min(shared or len(rows[row]), free[members[-1]], free[row])
            common = _common(rows[members[-1]], rows[row], most)
            if common >= _SHORTEST and common * len(members) >= shared * (len(members) - 1):
                members.append(row)
                shared = common
                continue
            yield Group(shared, tuple(members))
        members, shared = [row], 0
    if members:
        yield Group(shared, tuple(members))


def _common(first: Ids, second: Ids, most: int) -> int:
    """Tokens both begin with, up to a number."""
    if first[:most] == second[:most]:
        return min(most, len(first), len(second))
    return next(
        place for place, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]
    )


def _parts(group: Group, rows: Sequence[Ids], batch_tokens: int) -> Iterator[Group]:
    """A group in pieces that fit into a batch, each of rows of like lengths."""
    if not _pays(group, rows):
        yield Group(0, group.rows)
        return
    longest = _longest(group, rows)
    fed = (batch_tokens - group.shared) // longest
    most = min(fed, _SPREAD * batch_tokens // (group.shared + longest))
    if most < 2:
        yield Group(0, group.rows)
        return
    by_length = sorted(group.rows, key=lambda row: -len(rows[row]))
    for start in range(0, len(by_length), most):
        part = tuple(by_length[start : start + most])
        yield Group(group.shared if len(part) > 1 else 0, part)


def _pays(group: Group, rows: Sequence[Ids]) -> bool:
    """Whether feeding a beginning once saves enough of what its rows are to be worth a pass."""
    saved = group.shared * (len(group.rows) - 1)
    return saved > _LEAST_SAVED * sum(len(rows[row]) for row in group.rows)


def _filled(
    groups: Sequence[Group], rows: Sequence[Ids], batch_tokens: int
) -> Iterator[list[Group]]:
    """Groups one after the other, as many together as fit."""
    filled: list[Group] = []
    for group in groups:
        if filled and not _fits([*filled, group], rows, batch_tokens):
            yield filled
            filled = []
        filled.append(group)
    if filled:
        yield filled


def _fits(groups: Sequence[Group], rows: Sequence[Ids], batch_tokens: int) -> bool:
    """Whether groups may be fed together."""
    count = sum(len(group.rows) for group in groups)
    shared, longest = (
        max(group.shared for group in groups),
        max(_longest(group, rows) for group in groups),
    )
    fed = count * longest + (shared and len(groups) * shared)
    return fed <= batch_tokens and count * (shared + longest) <= _SPREAD * batch_tokens
