"""Products with a matrix of every expert, which may be there only some columns at a time."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from torch import Tensor


class Pieces(Protocol):
    """A matrix of every expert, [e, a, b], made piece by piece.

    Pieces are of columns, of all experts and all rows: each gives some columns of a product as they
    are, so that nothing has to be summed up, and how many rows an expert has need not be known.
    """

    @property
    def mT(self) -> "Pieces":
        """The same matrices transposed."""
        ...

    @property
    def width(self) -> int:
        """All columns, b."""
        ...

    @property
    def runs(self) -> int:
        """Equal parts of a row; a piece has the same columns of each."""
        ...

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """Pieces, [e, a, columns], each with the column of every run that it begins with. One is
        read before the next is asked for, and may be overwritten by it."""
        ...


Matrices = Tensor | Pieces
"""A matrix of every expert: as a stack, or made piece by piece."""


def by_columns(
    matrices: Matrices, product: Callable[[Tensor], Tensor], at_once: int | None = None
) -> Tensor:
    """``product`` of the whole matrices, from that of each piece.

    Args:
        matrices: [e, a, b].
        product: gives a column for each of those it gets, whatever the others are.
        at_once: columns of a piece of matrices that are there as a whole; None takes them all.

    Returns:
        [rows, b].
    """
    if isinstance(matrices, Tensor):
        width, runs, pieces = matrices.shape[2], 1, _split(matrices, at_once)
    else:
        width, runs, pieces = matrices.width, matrices.runs, matrices
    out = None
    for start, piece in pieces:
        part = product(piece)
        if part.shape[1] == width:
            return part
        out = part.new_empty(len(part), width) if out is None else out
        there, columns = (x.unflatten(1, (runs, -1)) for x in (out, part))
        there[:, :, start : start + columns.shape[2]] = columns
    assert out is not None
    return out


def _split(matrices: Tensor, at_once: int | None) -> Iterable[tuple[int, Tensor]]:
    width = matrices.shape[2]
    step = width if at_once is None else at_once
    return zip(range(0, width, step), matrices.split(step, dim=2), strict=True)
