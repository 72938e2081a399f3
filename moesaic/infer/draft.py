"""`Ahead`: what a prediction module has of a sequence, and has still to read.

Letters: T tokens fed, D hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from moesaic.infer.blocks import Held
from moesaic.infer.decoder import Known


@dataclass(slots=True)
class Ahead:
    """What a prediction module has of one sequence.

    It reads a position when the token after it is known: what it holds is never longer than what
    the model holds, whose blocks it shares.
    """

    held: Held
    """Positions it has read: in the blocks of the sequence, with a length of its own."""
    n_unread: int = 0
    """Positions that wait to be read."""
    is_over: bool = False
    """Whether it reads no more."""
    _hidden: list[Tensor] = field(default_factory=list)
    """Hidden states of the positions that wait, as the model gave them."""

    @classmethod
    def beside(cls, held: Held) -> Self:
        """Of a sequence whose positions so far it has all read."""
        return cls(Held(held.pool, held.blocks, held.length))

    def add(self, hidden_TD: Tensor) -> None:
        """Let the next positions wait."""
        if not self.is_over:
            self._hidden.append(hidden_TD)
            self.n_unread += len(hidden_TD)

    def known(self, ids: Sequence[int]) -> Known:
        """What it is to be fed.

        Args:
            ids: of the sequence, up to the one after the positions that wait.
        """
        hidden_TD, first = torch.cat(self._hidden), self.held.length + 1
        return Known(self.held, tuple(ids[first : first + self.n_unread]), hidden_TD)

    def clear(self) -> None:
        """Let nothing wait: it was fed."""
        self._hidden.clear()
        self.n_unread = 0

    def end(self) -> None:
        """Let nothing wait from now on: no more is foretold."""
        self.is_over = True
        self.clear()
