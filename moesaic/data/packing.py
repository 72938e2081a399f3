"""`Packer`: documents to rows of fixed length.

Axes: S positions of a row.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from moesaic.data.batch import IGNORED, Batch
from moesaic.data.encode import Encoded


class Row:
    """One row of a batch while it fills up."""

    def __init__(self, seq_len: int, pad_id: int) -> None:
        self.ids_S = torch.full((seq_len,), pad_id, dtype=torch.int64)
        self.labels_S = torch.full((seq_len,), IGNORED, dtype=torch.int64)
        self.positions_S = torch.zeros(seq_len, dtype=torch.int64)
        self.documents_S = torch.zeros(seq_len, dtype=torch.int64)
        self.filled = 0
        self._documents = 0

    @property
    def room(self) -> int:
        """Positions that are still empty."""
        return self.ids_S.shape[0] - self.filled

    def add(self, ids: Tensor, labels: Tensor) -> None:
        """Put one document, or a piece of one, into the next positions."""
        end = self.filled + ids.shape[0]
        self.ids_S[self.filled : end] = ids
        self.labels_S[self.filled : end] = labels
        self._close(end)

    def pad(self) -> None:
        """Make what is empty a document of its own, with nothing to learn."""
        if self.room:
            self._close(self.filled + self.room)

    def _close(self, end: int) -> None:
        self.positions_S[self.filled : end] = torch.arange(end - self.filled)
        self.documents_S[self.filled : end] = self._documents
        self._documents += 1
        self.filled = end


class Packer:
    """Fills rows with documents, in the order they come.

    A document of n + 1 tokens takes n positions, each with its next token as label, so EOS is
    predicted but never fed. With packing, a document that does not fit goes on in the next row: the
    rest is a document of its own there, its positions from 0, and the token before the cut predicts
    the one after it. So no prediction is lost; only what the rest could have attended to is.
    Without packing, every document begins a row, and only one longer than a row is cut.
    """

    def __init__(
        self, draw: Callable[[], Encoded | None], seq_len: int, pad_id: int, packing: bool = True
    ) -> None:
        """Start with an empty row.

        Args:
            draw: the next document, or None after the last.
            seq_len: positions in a row.
            pad_id: token that fills rows at the end.
            packing: whether a row holds more than one document.
        """
        self._draw = draw
        self._seq_len = seq_len
        self._pad_id = pad_id
        self._packing = packing
        self._current: Encoded | None = None
        self.used = 0
        """Positions of the current document that are in rows already; 0 when it is finished."""

    def restart(self, skip: int) -> None:
        """Begin with a new document, without ``skip`` positions that an earlier row had."""
        self._current = self._draw() if skip else None
        self.used = skip

    def row(self) -> Row | None:
        """The next row, or None after the last document."""
        row = Row(self._seq_len, self._pad_id)
        while row.room and (self._packing or not row.filled):
            if not self.used:
                self._current = self._draw()
            if self._current is None:
                break
            end = min(self.used + row.room, len(self._current))
            if end > self.used:
                row.add(
                    self._current.ids_S[self.used : end], self._current.labels_S[self.used : end]
                )
            self.used = end if end < len(self._current) else 0
        if not row.filled:
            return None
        row.pad()
        return row


def batch_of(rows: list[Row]) -> Batch:
    """Rows of one length as a batch."""
    return Batch(
        ids_BS=torch.stack([row.ids_S for row in rows]),
        labels_BS=torch.stack([row.labels_S for row in rows]),
        positions_BS=torch.stack([row.positions_S for row in rows]),
        documents_BS=torch.stack([row.documents_S for row in rows]),
    )
