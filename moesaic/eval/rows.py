"""`Rows`: what many requests ask, as distinct rows of ids: each is fed once, whoever asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum

from moesaic.eval.encode import Asked, Ids
from moesaic.eval.score import Found, Query


@dataclass(frozen=True, slots=True)
class Told:
    """What the rows of one request say of its tokens."""

    log_probability: float
    """Sum, in nats."""
    is_greedy: bool
    """Whether each is the model's first choice."""
    tokens: int


@dataclass(slots=True)
class Rows:
    """The rows of some requests.

    Requests that differ in their last token alone, as the letters of a question's choices do, share
    a row: that token is looked up and not fed.
    """

    ids: list[Ids] = field(default_factory=list)
    """What to feed."""
    users: list[list[int]] = field(default_factory=list)
    """For each row the requests that need it."""
    _parts: dict[int, list[tuple[int, Asked]]] = field(default_factory=dict)
    _row: dict[Ids, int] = field(default_factory=dict)
    _firsts: list[int] = field(default_factory=list)
    _lasts: list[dict[int, int]] = field(default_factory=list)

    def add(self, request: int, asked: Sequence[Asked]) -> None:
        """Note what a request asks, which is nothing for an empty text."""
        self._parts[request] = [(self._add(request, one), one) for one in asked]

    @property
    def free(self) -> list[int]:
        """For each row the tokens of its beginning that nothing is asked about."""
        return self._firsts

    def rows_of(self, request: int) -> set[int]:
        """Rows that a request needs."""
        return {row for row, _ in self._parts[request]}

    def queries(self) -> list[Query]:
        """What to ask about every row: each token of its end, then all that may follow it."""
        return [
            Query(
                ids,
                (*range(first, len(ids) - 1), *[len(ids) - 1] * len(lasts)),
                (*ids[first + 1 :], *lasts),
            )
            for ids, first, lasts in zip(self.ids, self._firsts, self._lasts, strict=True)
        ]

    def told(self, request: int, found: Mapping[int, Found]) -> Told:
        """What its rows say of a request."""
        log_p: list[float] = []
        is_first: list[bool] = []
        for row, asked in self._parts[request]:
            end = len(self.ids[row]) - 1 - self._firsts[row]
            start, last = end - len(asked.tokens) + 1, end + self._lasts[row][asked.tokens[-1]]
            places = (*range(start, end), last)
            log_p += [found[row].log_probabilities[place] for place in places]
            is_first += [found[row].is_first[place] for place in places]
        return Told(fsum(log_p), all(is_first), len(log_p))

    def _add(self, request: int, asked: Asked) -> int:
        row = self._row.setdefault(asked.fed, len(self.ids))
        first = len(asked.fed) - len(asked.tokens)
        if row == len(self.ids):
            self.ids.append(asked.fed)
            self.users.append([])
            self._firsts.append(first)
            self._lasts.append({})
        self.users[row].append(request)
        self._firsts[row] = min(self._firsts[row], first)
        self._lasts[row].setdefault(asked.tokens[-1], len(self._lasts[row]))
        return row
